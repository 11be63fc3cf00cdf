"""Each row of the seam table against the installed SGLang: a failure names what drifted, what is lost, what to fix."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from sglang.srt.plugins import load_plugins

import dlm_sglang
from dlm_sglang.errors import SeamError
from dlm_sglang.seams import check
from dlm_sglang.seams.check import BUILT_FOR, check_effect, check_registrations, check_seams, check_shape, require_seams
from dlm_sglang.seams.table import SEAMS, Kind, Seam


@pytest.fixture(scope="module", autouse=True)
def _loaded_plugins() -> None:
    load_plugins()


def test_installed_sglang_is_the_version_we_were_built_for() -> None:
    assert version("sglang") == BUILT_FOR, "run the whole suite, read the upgrade notes, then change BUILT_FOR"


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.target.removeprefix("sglang.srt."))
def test_row_has_the_shape_that_we_rely_on(seam: Seam) -> None:
    assert check_shape(seam) is None


@pytest.mark.parametrize(
    "seam", [seam for seam in SEAMS if seam.kind is Kind.HOOK], ids=lambda seam: seam.target.removeprefix("sglang.srt.")
)
def test_hook_is_in_force_after_plugins_loaded(seam: Seam) -> None:
    assert check_effect(seam) is None


def test_registries_hold_what_the_plugin_put_there() -> None:
    assert check_registrations() == []
    assert check_seams() == []


def test_entry_points_lead_to_the_plugin() -> None:
    plugins = {point.name: point.value for point in entry_points(group="sglang.srt.plugins")}
    platforms = {point.name: point.value for point in entry_points(group="sglang.srt.platforms")}
    assert plugins["dlm"] == "dlm_sglang.seams.plugin:register"
    assert platforms["dlm_cpu"] == "dlm_sglang.seams.platform_cpu:activate"


def test_vanished_target_is_named_with_loss_and_remedy() -> None:
    gone = Seam("sglang.srt.managers.scheduler.Scheduler.no_such_thing", ("self",), "seams/x.py", "the thing", "never")
    problem = check_shape(gone)
    assert problem is not None
    for part in ("no_such_thing", "Lost: the thing", "Fix: seams/x.py"):
        assert part in problem


def test_renamed_parameter_is_named() -> None:
    drifted = Seam("sglang.srt.utils.common.support_triton", ("backend", "device"), "seams/x.py", "CPU", "never")
    assert "lacks parameters device" in str(check_shape(drifted))


def test_process_without_a_hook_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = next(seam for seam in SEAMS if seam.kind is Kind.HOOK)
    owner_path, name = hooked.target.rsplit(".", 1)
    owner = pkgutil.resolve_name(owner_path)
    original: Callable[..., object] = getattr(owner, name).__wrapped__
    monkeypatch.setattr(owner, name, original)
    with pytest.raises(SeamError, match="not in force"):
        require_seams("test")


def test_every_sglang_import_of_ours_is_in_the_seams() -> None:
    root = Path(dlm_sglang.__file__).parent
    offenders = [
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "seams" not in path.parts
        and any(line.startswith(("import sglang", "from sglang")) for line in path.read_text().splitlines())
    ]
    assert offenders == []


def test_cpu_platform_is_chosen_where_there_is_no_accelerator() -> None:
    import torch

    assert check.on_cpu_platform() is not torch.cuda.is_available()
