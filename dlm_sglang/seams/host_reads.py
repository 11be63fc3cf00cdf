"""Counts the places where the host waits to read what a device computed.

On a GPU each of them stops the host until everything launched before has run. On a CPU nothing waits, but the same
calls are made: so a machine without a GPU can count them, which keeps the decode loop free of them. What one of our
operations does inside on a CPU is not counted: on a GPU that is a kernel.

On CUDA devices PyTorch's own sync debug mode sees more (`torch.cuda.set_sync_debug_mode`); the GPU tests use it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Methods that hand values to Python. Some dispatch no operator when the tensor is on the CPU.
_READING_METHODS = (
    "__bool__",
    "__float__",
    "__index__",
    "__int__",
    "__contains__",
    "__iter__",
    "cpu",
    "item",
    "numpy",
    "tolist",
)
# Operators whose result's shape depends on values, or that move values between devices.
_READING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "bincount")

# Of a round on a CPU that a GPU runs in another form.
_STANDS_IN = "/decode/plan_cpu.py"


class HostReads:
    """Context manager that records every host read of the thread inside it.

    Attributes:
        places: where the reads were, `what at file:line function`, one entry per read.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self._num_inside = 0
        self._originals: dict[str, Callable[..., object]] = {}
        self._operators = _SeenOperators(self._record)

    def __enter__(self) -> HostReads:
        self._originals = {name: getattr(Tensor, name) for name in _READING_METHODS}
        for name, original in self._originals.items():
            setattr(Tensor, name, self._recording(name, original))
        self._operators.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        self._operators.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        for name, original in self._originals.items():
            setattr(Tensor, name, original)

    def _recording(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def method(tensor: Tensor, *args: object, **kwargs: object) -> object:
            self._record(name)
            # What it calls in turn is the same read.
            self._num_inside += 1
            try:
                return original(tensor, *args, **kwargs)
            finally:
                self._num_inside -= 1

        return method

    def _record(self, name: str) -> None:
        place = _caller() if self._num_inside == 0 else None
        if place is not None:
            self.places.append(f"{name} at {place}")


class _SeenOperators(TorchDispatchMode):
    """Tells of operators that read; torch's own modes carry no types."""

    def __init__(self, record: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = record

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name().split("::")[1].split(".")[0]
        if name in _READING_OPERATORS or _indexes_by_flags(name, args):
            self._tell(name)
        return func(*args, **(kwargs or {}))


def _indexes_by_flags(name: str, args: tuple[object, ...]) -> bool:
    """`x[flags]`: the number of true flags is the result's length."""
    if name not in ("index", "index_put", "index_put_") or len(args) < 2 or not isinstance(args[1], list | tuple):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


def _caller() -> str | None:
    """The frame that read, or None inside what stands in for device code of ours on a CPU."""
    frame: FrameType | None = sys._getframe(1)
    place = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(_STANDS_IN) or ("dlm_kernels" in file and file.endswith(("/reference.py", "/cpu.py"))):
            return None
        if place is None and file != __file__ and "/torch/" not in file:
            place = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return place
