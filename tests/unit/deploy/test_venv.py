"""The set-up script decides right; that what it installs works is seen by every other test."""

from __future__ import annotations

import importlib.util
import json
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "setup" / "venv.py"


@pytest.fixture
def setup_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_setup_venv", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up here.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def put_tool(folder: Path, name: str, script: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("driver", "device"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", "cuda"),
        ("echo 'No devices found.'", "cpu"),
        ("echo 'GPU 0: seen, then lost'; exit 9", "cpu"),
        (None, "cpu"),
    ],
)
def test_device_is_cuda_only_where_the_driver_lists_a_gpu(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, device: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if driver is not None:
        put_tool(tmp_path, "nvidia-smi", driver)
    assert setup_script.detect_device() == device


def current_environment(setup_script: ModuleType, folder: Path, *, dev: bool) -> Path:
    """An environment folder that looks set up, and its stamp."""
    plan = setup_script.Plan(folder, "cpu", dev, True)
    plan.python.parent.mkdir(parents=True)
    plan.python.touch()
    stamp: Path = folder / setup_script.STAMP_NAME
    stamp.write_text(json.dumps({"key": plan.key()}))
    return stamp


def test_second_run_does_nothing(
    setup_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    current_environment(setup_script, tmp_path / "venv", dev=False)
    monkeypatch.setattr(setup_script, "run", None)
    assert setup_script.main(["--venv", str(tmp_path / "venv"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == ""


def test_environment_with_dev_tools_serves_both_but_not_the_other_way_round(
    setup_script: ModuleType, tmp_path: Path
) -> None:
    for dev, plain_is_current, dev_is_current in ((True, True, True), (False, True, False)):
        folder = tmp_path / str(dev)
        stamp = current_environment(setup_script, folder, dev=dev)
        assert setup_script.is_current(setup_script.Plan(folder, "cpu", False, True), stamp) is plain_is_current
        assert setup_script.is_current(setup_script.Plan(folder, "cpu", True, True), stamp) is dev_is_current


@pytest.mark.parametrize("stamp_text", ["", "not json", "[]", '{"key": "of other pins"}'])
def test_damaged_or_old_stamp_is_not_current(setup_script: ModuleType, tmp_path: Path, stamp_text: str) -> None:
    stamp = current_environment(setup_script, tmp_path, dev=False)
    stamp.write_text(stamp_text)
    assert not setup_script.is_current(setup_script.Plan(tmp_path, "cpu", False, True), stamp)


def test_cpu_plan_installs_every_pin_without_requirements_and_leaves_torch_alone(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup_script, "pip", lambda _plan, *arguments: calls.append(arguments))
    setup_script.install_pinned(setup_script.Plan(tmp_path, "cpu", True, True))
    ((command, no_deps, *pins),) = calls
    assert (command, no_deps) == ("install", "--no-deps")
    assert all("==" in pin for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {"sglang", "torchvision", "triton", "pytest"} <= names
    assert "torch" not in names


def test_missing_cpu_build_is_said_before_the_large_download(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(_plan: object, *arguments: str, check: bool = True) -> int:
        calls.append(arguments)
        return 0 if check else 1

    monkeypatch.setattr(setup_script, "pip", pip)
    monkeypatch.setattr(setup_script, "installed_version", lambda *_: "")
    setup_script.install_cpu_torch(setup_script.Plan(tmp_path, "cpu", False, True, "index"))
    first, second = calls
    assert first[-1].endswith("+cpu")
    assert first[2:4] == ("--extra-index-url", "index")
    assert second == ("install", first[-1].removesuffix("+cpu"))
    assert "TORCH_INDEX_URL" in capsys.readouterr().out


def test_failed_stage_shows_what_the_command_said_and_leaves_no_stamp(
    setup_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(plan: object) -> None:
        setup_script.run([sys.executable, "-c", "print('no such wheel'); raise SystemExit(3)"], plan)

    monkeypatch.setattr(setup_script, "stages", lambda _plan: [("a stage", fail)])
    assert setup_script.main(["--venv", str(tmp_path / "venv"), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "[1/1] a stage" in captured.out
    assert "no such wheel" in captured.err
    assert not (tmp_path / "venv" / setup_script.STAMP_NAME).exists()
