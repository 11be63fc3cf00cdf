"""A server of which a process died ends at once, so that it can be started again.

SGLang first waits 5 s for a GPU to settle and 60 s for core dumps, in its event loop: clients hang and probes time out
meanwhile, also where no dump can come. What cannot come is not waited for; a variable that is set says otherwise.
"""

from __future__ import annotations

import os
import shutil

_CORE_DUMPS_ON = "CUDA_ENABLE_USER_TRIGGERED_COREDUMP"
_CORE_DUMP = "SGLANG_CUDA_COREDUMP_BEFORE_CRASH"
_STACK_DUMP = "SGLANG_PYSPY_DUMP_BEFORE_CRASH"


def end_soon_after_a_crash() -> None:
    """Leave out the dumps that SGLang cannot make here."""
    if os.environ.get(_CORE_DUMPS_ON) != "1":
        os.environ.setdefault(_CORE_DUMP, "0")
    if shutil.which("py-spy") is None:
        os.environ.setdefault(_STACK_DUMP, "0")
