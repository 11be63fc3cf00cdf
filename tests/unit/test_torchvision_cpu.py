"""The start-up line that lets torchvision's CUDA wheel import beside a CPU build of torch.

Each test runs a fresh interpreter on a made-up `site-packages`, so that they hold wherever they run: beside the
real torchvision, beside none, on a machine with a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_sglang import torchvision_cpu

# What torchvision does at import, in small: `_meta_registrations` needs operators that `_C` was to define.
FAKE_TORCHVISION = {
    "__init__.py": "from . import extension\nfrom torchvision import _meta_registrations\n",
    "extension.py": "import os\ndef _has_ops(): return os.environ['HAS_OPS'] == '1'\n",
    "_meta_registrations.py": (
        "import torch, torchvision.extension\n"
        "for name in ('nms', 'qnms'):\n"
        "    if f'torchvision::{name}' not in torch.defined: raise RuntimeError(f'operator {name} does not exist')\n"
    ),
}
FAKE_TORCH = (
    "import types\n"
    "defined = {}\n"
    "ops = types.SimpleNamespace(torchvision=types.SimpleNamespace())\n"
    "library = types.SimpleNamespace(define=defined.__setitem__)\n"
)


@pytest.fixture
def site_folder(tmp_path: Path) -> Path:
    (tmp_path / "torchvision").mkdir()
    for name, text in FAKE_TORCHVISION.items():
        (tmp_path / "torchvision" / name).write_text(text)
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    torchvision_cpu.write_pth(str(tmp_path))
    return tmp_path


def run(site_folder: Path, program: str, *, has_ops: bool = False, isolated: bool = False) -> str:
    """Run a program after `site` has read the folder's .pth files; without our package where `isolated`."""
    package = "" if isolated else f"sys.path.insert(0, {str(Path(torchvision_cpu.__file__).parents[1])!r}); "
    start = (
        f"import sys, site; {package}site.addsitedir({str(site_folder)!r}); sys.path.insert(0, {str(site_folder)!r})"
    )
    done = subprocess.run(
        # -S: without the real site-packages and what they do at start.
        [sys.executable, "-S", "-E", "-c", f"{start}\n{program}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HAS_OPS": "1" if has_ops else "0"},
    )
    return (done.stdout + done.stderr).strip()


def test_import_passes_when_the_compiled_library_did_not_load(site_folder: Path) -> None:
    program = "import torchvision, torch; print(sorted(torch.defined))"
    assert run(site_folder, program) == "['torchvision::nms', 'torchvision::qnms']"


def test_nothing_is_defined_when_the_compiled_library_loaded(site_folder: Path) -> None:
    program = "import torch; torch.defined |= {'torchvision::nms': '', 'torchvision::qnms': ''}; import torchvision"
    assert run(site_folder, f"{program}; print(set(torch.defined.values()))", has_ops=True) == "{''}"


def test_operators_that_exist_are_left_alone(site_folder: Path) -> None:
    program = (
        "import torch; torch.ops.torchvision.nms = print; torch.defined['torchvision::nms'] = 'theirs'; "
        "import torchvision; print(torch.defined['torchvision::nms'])"
    )
    assert run(site_folder, program) == "theirs"


def test_without_the_hook_the_import_fails_as_it_does_upstream(site_folder: Path) -> None:
    (site_folder / torchvision_cpu.PTH_NAME).unlink()
    assert "operator nms does not exist" in run(site_folder, "import torchvision")


def test_finder_removes_itself_and_is_installed_once(site_folder: Path) -> None:
    program = (
        "from dlm_sglang.torchvision_cpu import install; install()\n"
        "count = lambda: sum(type(f).__name__ == '_DefineBeforeRegistrations' for f in sys.meta_path)\n"
        "print(count()); import torchvision; print(count()); install(); print(count())"
    )
    assert run(site_folder, program).split() == ["1", "0", "0"]


def test_start_up_line_is_silent_when_dlm_sglang_is_uninstalled(site_folder: Path) -> None:
    assert run(site_folder, "print('alive', 'torch' in sys.modules)", isolated=True) == "alive False"


def test_start_up_line_is_one_line() -> None:
    assert torchvision_cpu.PTH_LINE.count("\n") == 1
    assert torchvision_cpu.PTH_LINE.startswith("import ")
