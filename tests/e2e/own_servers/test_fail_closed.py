"""A server that cannot decode with our worker does not start, and says why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dlm_sglang.measure.server import free_port
from tests.e2e.server import START_TIMEOUT_S, launch_command, stop_tree

# Imported by Python at start, in every process of the server: takes one thing away from SGLang once it is imported.
VANISHING_TARGET = """
import importlib.abc
import importlib.machinery
import sys


class Vanish(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            {statement}

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Vanish())
"""


def refusal(checkpoint: Path, flags: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a launch that must end by itself."""
    process = subprocess.Popen(
        launch_command(checkpoint, free_port(), flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.fail("the server neither ended nor said why")
    finally:
        stop_tree(process.pid)
    text = output.decode(errors="replace")
    assert "The server is fired up" not in text
    return process.returncode, text


def with_shim(folder: Path, module: str, statement: str) -> dict[str, str]:
    """An environment in which `statement` runs right after `module` was imported."""
    (folder / "sitecustomize.py").write_text(VANISHING_TARGET.format(module=module, statement=statement))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(("plugins", "reason"), [("none", "platform plugin"), ("dlm_cpu", "nemotron_labs_diffusion")])
def test_skipped_plugin_refuses_to_start(checkpoint: Path, plugins: str, reason: str) -> None:
    """SGLang lacks our platform, or the rest of ours, then; the stock server must not start in their place."""
    status, output = refusal(checkpoint, [], {"SGLANG_PLUGINS": plugins})
    assert status != 0
    assert reason in "\n".join(output.splitlines()[-15:])


def test_vanished_hook_target_refuses_to_start_and_names_it(checkpoint: Path, tmp_path: Path) -> None:
    module, name = "sglang.srt.speculative.eagle_utils", "eagle_prepare_for_decode"
    status, output = refusal(checkpoint, [], with_shim(tmp_path, module, f"del module.{name}"))
    assert status != 0
    assert f"{module}.{name}" in output
    assert "gone" in output
    assert "seams/batch.py" in output


def test_changed_signature_refuses_to_start_and_names_the_parameter(checkpoint: Path, tmp_path: Path) -> None:
    module = "sglang.srt.mem_cache.allocation"
    statement = "module.alloc_for_spec_decode = lambda tree_cache: None"
    status, output = refusal(checkpoint, [], with_shim(tmp_path, module, statement))
    assert status != 0
    assert f"{module}.alloc_for_spec_decode" in output
    assert "num_needed_tokens" in output


def test_plugin_that_raises_refuses_to_start_and_shows_the_error(checkpoint: Path, tmp_path: Path) -> None:
    """SGLang logs such a plugin and goes on without it."""
    statement = "module.register_attention_backend = None"
    shim = with_shim(tmp_path, "sglang.srt.layers.attention.attention_registry", statement)
    status, output = refusal(checkpoint, [], shim)
    assert status != 0
    assert "error: dlm_sglang could not register with SGLang" in output


def test_attention_backend_that_cannot_do_blocks_is_refused_with_the_reason(checkpoint: Path) -> None:
    status, output = refusal(checkpoint, ["--attention-backend", "torch_native"], {})
    assert status != 0
    assert "--attention-backend cannot be combined with --speculative-algorithm DLM" in output
    assert "one visibility limit per query token" in output
