"""Evals on a made-up server: scoring, comparing, refusing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_sglang.bundled import tasks
from dlm_sglang.cli.main import main
from dlm_sglang.measure import evaluate, harness
from dlm_sglang.measure.store import read_results
from tests.unit.measure.conftest import WORDS, FakeServer


@pytest.fixture
def always_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task's answer is what the made-up server says."""

    def generate(split: tasks.Split, seed: int, n: int) -> list[tasks.Task]:
        return [tasks.Task("fact", f"question {seed} {number}", "".join(WORDS)) for number in range(n)]

    monkeypatch.setattr(evaluate, "generate", generate)


def run_eval(fake: FakeServer, out: Path, *more: str) -> int:
    return main(["eval", "--url", fake.url, "--prompts", "12", "--out", str(out), *more])


@pytest.mark.usefixtures("always_right")
def test_an_eval_scores_recommends_and_plots(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.jsonl"
    assert run_eval(fake, out, "--json", "--plots", str(tmp_path), "--html", str(tmp_path / "e.html")) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [row["accuracy"] for row in found["rows"]] == [1.0, 1.0, 1.0, 1.0]
    assert found["recommendation"]["setting"] == "self_speculation"
    assert found["area"] == {"autoregressive": 1.0, "diffusion": 2.5, "self_speculation": 1.25, "auto": 1.0}
    assert "no confidence_threshold" in printed.err
    assert (tmp_path / "accuracy-over-tpf.png").stat().st_size > 1000
    assert "Recommended: self_speculation" in (tmp_path / "e.html").read_text()
    assert run_eval(fake, out, "--resume") == 0
    assert "recommended: self_speculation" in capsys.readouterr().out
    assert len(read_results(out).lines) == 4


@pytest.mark.usefixtures("always_right")
def test_runs_on_other_prompts_or_sampling_are_not_put_together(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    assert run_eval(fake, files[0], "--modes", "ar", "diffusion") == 0
    assert run_eval(fake, files[1], "--modes", "ar", "self_speculation") == 0
    assert run_eval(fake, files[2], "--seed", "1", "--temperature", "0.5") == 0
    capsys.readouterr()
    assert main(["eval", "--compare", str(files[0]), str(files[1])]) == 0
    assert "self_speculation" in capsys.readouterr().out
    assert main(["eval", "--compare", str(files[0]), str(files[2])]) == 2
    message = capsys.readouterr().err
    assert "seed: " in message
    assert "sampling: " in message


def test_wrong_and_cut_off_answers_count_as_wrong(fake: FakeServer, tmp_path: Path) -> None:
    assert run_eval(fake, tmp_path / "e.jsonl", "--modes", "ar") == 0
    (line,) = read_results(tmp_path / "e.jsonl").lines
    assert line["hits"] == "0" * 12


def test_losses_need_the_baseline(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval(fake, tmp_path / "e.jsonl", "--modes", "diffusion") == 2
    assert "--modes must name autoregressive" in capsys.readouterr().err


def test_tasks_of_the_harness_are_refused_where_it_is_missing(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert run_eval(fake, tmp_path / "e.jsonl", "--tasks", "gsm8k") == 2
    assert "deploy/requirements/lm-eval.txt" in capsys.readouterr().err
    assert fake.bodies == []
