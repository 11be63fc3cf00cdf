"""Without a GPU SGLang's collectives do without NCCL, whichever build of torch is installed."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

from dlm_sglang.seams import check


def test_the_library_that_torchs_default_build_brings_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    if not check.on_cpu_platform():
        pytest.skip("there is a GPU")
    # What the default build says of itself.
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(RuntimeError, match="no NCCL without a GPU"):
        NCCLLibrary()
