"""`dlm-sglang plan` as a command, and flags of `bench` that belong to its other half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dlm_sglang.cli.main import main


def test_text_json_yaml_and_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "plan.png"
    assert main(["plan", "--model", "nld-8b", "--gpu", "h200", "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert "AR overtakes at" in printed.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size < 150_000
    assert main(["plan", "--model", "nld-8b", "--gpu", "h200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["kv_bytes_per_token"] == 139_264
    assert main(["plan", "--model", "nld-8b", "--gpu", "h200", "--yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(found["settings"])


def test_measured_gains_move_the_crossover(capsys: pytest.CaptureFixture[str]) -> None:
    def overtakes(*more: str) -> object:
        argv = ["plan", "--model", "nld-8b", "--gpu", "h200", "--contexts", "1024", "--block-length", "32", "--json"]
        assert main([*argv, *more]) == 0
        return json.loads(capsys.readouterr().out)["autoregressive_overtakes_at"]["1024"]["spec-32"]

    assert overtakes("--accept-length", "32=6.82") < overtakes()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gpu", "gtx"], "unknown GPU 'gtx'"),
        (["--model", "/nowhere"], "cannot read /nowhere"),
        (["--model", "nld-14b", "--gpu", "l4"], "--tp-size"),
        (["--accept-length", "32"], "BLOCK=X"),
        (["--load", "0"], "--load must be at least 1"),
        (["--url", "http://127.0.0.1:9"], "did not answer"),
    ],
)
def test_a_wrong_plan_is_one_error_with_a_way_out(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *argv]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--modes", "diffusion"], "--modes has no effect without --url"),
        (["--html", "x.html"], "--html has no effect without --url"),
        (["--url", "http://127.0.0.1:9", "--model-path", "x"], "--model-path has no effect with --url"),
    ],
)
def test_flags_of_the_other_half_of_bench_are_refused(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    assert words in capsys.readouterr().err
