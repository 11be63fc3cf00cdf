"""`auto` on a simulated GPU: the controller that the server runs, a roofline for the time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlm_sglang.measure import auto_simulation
from dlm_sglang.measure.auto_simulation import hazard_of, simulate
from dlm_sglang.measure.plan.roofline import ACCEPT_LENGTHS


def test_the_hazard_gives_the_published_accept_lengths() -> None:
    hazard = hazard_of(ACCEPT_LENGTHS)
    assert len(hazard) == 31
    for block_length, published in ACCEPT_LENGTHS.items():
        alive, tokens = 1.0, 1.0
        for chance in hazard[: block_length - 1]:
            alive *= 1 - chance
            tokens += alive
        assert tokens == pytest.approx(published, rel=1e-6)


@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_auto_keeps_up_with_the_best_fixed_setting(concurrency: int) -> None:
    cell = simulate("nld-8b", "h200", 1024, concurrency)
    assert cell.ratio >= 0.95, cell


def test_the_shipped_results_are_of_all_sizes_and_reach_the_goal() -> None:
    found = json.loads((Path(__file__).parents[3] / "docs/results/auto-h200-simulated.json").read_text())
    cells = found["cells"]
    assert {cell["model"] for cell in cells} == {"nld-3b", "nld-8b", "nld-14b"}
    assert {cell["concurrency"] for cell in cells} == {1, 2, 4, 8, 16, 32, 64}
    assert min(cell["ratio"] for cell in cells) >= 0.95
    assert "not measured" in found["what"]


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.json"
    words = ["simulate", "--models", "nld-3b", "--contexts", "512", "--concurrency", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert auto_simulation.main() == 0
    assert "auto/best" in capsys.readouterr().out
    (cell,) = json.loads(out.read_text())["cells"]
    assert cell["ratio"] > 0.9
