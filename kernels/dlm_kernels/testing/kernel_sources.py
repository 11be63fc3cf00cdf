"""Which source files decide the machine code of a kernel, and their hash."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = "dlm_kernels"
_ROOT = Path(__file__).parents[1]


def kernel_modules() -> list[str]:
    """Modules below `dlm_kernels.ops` that hold Triton code, as `"choose_token.merge_kernel"`."""
    return sorted(f"{path.parent.name}.{path.stem}" for path in (_ROOT / "ops").glob("*/*kernel.py"))


def kernels_of(module: str) -> list[str]:
    """Names of the kernels that a module of `kernel_modules` launches; its device functions are not among them."""
    tree = ast.parse(_read(_path(f"ops.{module}")))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in functions if name.endswith("_kernel")]


def hash_of_sources(modules: Iterable[str]) -> str:
    """SHA-256 of the text of kernel modules and of all modules of this package that they import."""
    paths = sorted({path for module in modules for path in _closure(_path(f"ops.{module}"), set())})
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(_ROOT).as_posix()}\n{_read(path)}\n".encode())
    return digest.hexdigest()


def _closure(path: Path, seen: set[Path]) -> set[Path]:
    if path not in seen:
        seen.add(path)
        for node in ast.walk(ast.parse(_read(path))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_PACKAGE}."):
                _closure(_path(node.module.removeprefix(f"{_PACKAGE}.")), seen)
    return seen


def _path(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
