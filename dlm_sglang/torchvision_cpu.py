"""Let torchvision's CUDA wheel import beside a CPU build of torch.

SGLang's configuration package imports torchvision in every process, before any plugin runs, and the only
torchvision wheels on the registries are built against CUDA. There the compiled library `_C` fails to load,
which torchvision survives, but `_meta_registrations` then registers fake kernels for two operators that
nobody has defined, and the import ends in "operator torchvision::nms does not exist".

`install()` puts a finder on `sys.meta_path` that acts once: when `_meta_registrations` is about to be imported
and `_C` did not load, it defines those operators (schema only). Calling a torchvision operator still raises
torchvision's own "Couldn't load custom C++ ops". Where `_C` loads, nothing is done.

A one-line `.pth` file calls `install()` at interpreter start (see `write_pth`), so this module must stay
cheap to import: no torch, nothing beyond `sys`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PTH_NAME = "dlm_torchvision_cpu.pth"
# One line, because `site` reads a .pth line by line. An uninstalled dlm_sglang must leave no trace.
PTH_LINE = (
    'import sys; exec("try:\\n from dlm_sglang.torchvision_cpu import install\\n install()\\n'
    'except ImportError:\\n pass")\n'
)

_TRIGGER = "torchvision._meta_registrations"
# Every operator for which torchvision 0.28 registers a fake without checking that `_C` was loaded.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _DefineBeforeRegistrations:
    """A meta-path finder that finds nothing: it only acts on the import that would fail."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _TRIGGER:
            sys.meta_path.remove(self)
            define_missing_operators()
        return None


def install() -> None:
    """Arrange for the missing operators to be defined when torchvision is first imported."""
    if _TRIGGER in sys.modules or any(isinstance(f, _DefineBeforeRegistrations) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _DefineBeforeRegistrations())


def define_missing_operators() -> list[str]:
    """Define the operators that torchvision's `_C` did not bring, and return their names."""
    import torch
    from torchvision import extension

    if extension._has_ops():
        return []
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", _SCHEMAS[name])
    return missing


def write_pth(site_packages: str) -> str:
    """Write the start-up line into a `site-packages` folder and return the file's path."""
    pth_path = f"{site_packages}/{PTH_NAME}"
    with open(pth_path, "w", encoding="utf-8") as pth:
        pth.write(PTH_LINE)
    return pth_path


if __name__ == "__main__":
    import sysconfig

    print(write_pth(sysconfig.get_path("purelib")))
