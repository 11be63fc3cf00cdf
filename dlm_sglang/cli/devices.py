"""Count the GPUs that the server could use, without loading torch."""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

CUDA_DRIVER = "libcuda.so.1"
_BUILT_FOR_CUDA = re.compile(r"^cuda\b[^=]*=\s*['\"]", re.MULTILINE)


def num_cuda_devices() -> int:
    """Devices that the CUDA driver shows to this process; 0 where torch is not built for CUDA."""
    if not _torch_has_cuda():
        return 0
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA, as its `version.py` says."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version_file = Path(spec.origin).with_name("version.py")
    return version_file.is_file() and _BUILT_FOR_CUDA.search(version_file.read_text(encoding="utf-8")) is not None
