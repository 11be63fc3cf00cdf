"""Commands that only print must not pay for torch; every interpreter pays for the start-up line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "triton", "sglang", "transformers", "torchvision", "numpy", "fastapi", "matplotlib", "aiohttp"}


def modules_after(program: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a program."""
    report = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "program",
    [
        "import dlm_sglang",
        "import dlm_kernels",
        "import dlm_sglang.errors, dlm_sglang.params, dlm_sglang.settings",
        "import dlm_sglang.cli.main",
        "import dlm_sglang.torchvision_cpu",
    ],
)
def test_import_loads_nothing_heavy(program: str) -> None:
    assert modules_after(program) & HEAVY == set()


@pytest.mark.parametrize("command", [[], ["plan"], ["bench"], ["eval"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    program = (
        "import contextlib, io\nfrom dlm_sglang.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({[*command, '--help']})"
    )
    assert modules_after(program) & HEAVY == set()


def test_start_up_hook_imports_nothing_but_itself() -> None:
    before = modules_after("pass")
    after = modules_after("from dlm_sglang.torchvision_cpu import install; install()")
    assert after - before <= {"dlm_sglang"}


def test_a_plan_needs_neither_a_model_nor_a_plot_library() -> None:
    program = (
        "import contextlib, io\nfrom dlm_sglang.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert main(['plan', '--model', 'nld-8b']) == 0"
    )
    assert modules_after(program) & HEAVY == set()
