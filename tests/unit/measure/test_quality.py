"""Area, frontier, recommendation and traps on made-up measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_sglang.errors import SettingsError
from dlm_sglang.measure.quality import area, pareto, quality_rows, recommend, traps, warnings
from dlm_sglang.measure.store import Line

N = 300


def line(mode: str, wrong: int, tpf: float, *, block: int = 16, same: bool = False) -> Line:
    hits = "0" * wrong + "1" * (N - wrong)
    answers = [0] * N if same else [wrong + 1] * N
    fields = {"generation_mode": mode, "block_length": block}
    return {
        "key": {"setting": f"{mode} {block} {wrong}"},
        "fields": fields,
        "hits": hits,
        "answers": answers,
        "numbers": {"tpf": tpf, "tok_s": 100 * tpf},
    }


BASE = {**line("autoregressive", 0, 1.0, same=True), "fields": {"generation_mode": "autoregressive"}}


def test_the_baseline_comes_first_and_must_be_there() -> None:
    rows = quality_rows([line("diffusion", 9, 3.0), BASE])
    assert [row.mode for row in rows] == ["autoregressive", "diffusion"]
    assert rows[1].loss == pytest.approx(0.03)
    assert rows[1].loss_low < 0.03 < rows[1].loss_high
    with pytest.raises(SettingsError, match="no measurement of autoregressive"):
        quality_rows([line("diffusion", 9, 3.0)])
    short = {**line("diffusion", 9, 3.0), "hits": "1"}
    with pytest.raises(SettingsError, match="1 prompts in one setting"):
        quality_rows([BASE, short])


def test_area_is_tokens_per_forward_weighted_by_quality() -> None:
    rows = quality_rows([BASE, line("diffusion", 6, 4.0), line("diffusion", 15, 8.0), line("diffusion", 90, 16.0)])
    assert area(rows, "autoregressive") == 1.0
    # 0.98 up to 4, 0.95 from there to 8; the third one loses too much to count.
    assert area(rows, "diffusion") == pytest.approx(0.98 * 4 + 0.95 * 4)
    assert area(rows, "nothing") == 0.0


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.5, 30)), min_size=1, max_size=8))
def test_area_never_exceeds_the_highest_tpf_and_grows_with_every_setting(points: list[tuple[int, float]]) -> None:
    lines = [line("diffusion", wrong, tpf, block=number) for number, (wrong, tpf) in enumerate(points)]
    areas = [area(quality_rows([BASE, *lines[: n + 1]]), "diffusion") for n in range(len(lines))]
    assert areas == pytest.approx(sorted(areas))
    assert areas[-1] <= max(tpf for _, tpf in points) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.5, 30)), min_size=1, max_size=8))
def test_nobody_beats_the_frontier(points: list[tuple[int, float]]) -> None:
    rows = quality_rows([BASE, *(line("diffusion", w, tpf, block=n) for n, (w, tpf) in enumerate(points))])
    frontier = pareto(rows)
    for row in frontier:
        assert not [other for other in rows if other.tpf > row.tpf and other.accuracy >= row.accuracy]
    assert [row.tpf for row in frontier] == sorted(row.tpf for row in frontier)


def test_the_fastest_setting_within_the_loss_is_recommended() -> None:
    exact = line("self_speculation", 0, 8.8, block=32, same=True)
    near, far = line("diffusion", 9, 11.0), line("diffusion", 19, 12.0)
    rows = quality_rows([BASE, exact, near, far])
    assert recommend(rows, 0.0).row.mode == "self_speculation"
    assert recommend(rows, 0.01).row.mode == "self_speculation"
    assert recommend(rows, 0.07).row.setting == "diffusion 16 9"
    assert recommend(rows, 0.20).row.setting == "diffusion 16 19"
    assert "12.00 tokens per forward; it loses 6.3%" in recommend(rows, 0.20).reason
    assert "1200.00 tok/s" in recommend(rows, 0.20, "tok_s").reason


def test_equal_answers_prove_nothing_for_diffusion_beyond_the_interval() -> None:
    rows = quality_rows([BASE, line("diffusion", 0, 20.0, same=True)])
    assert recommend(rows, 0.0).row.mode == "autoregressive"
    assert recommend(rows, 0.01).row.mode == "diffusion"


@pytest.mark.parametrize(
    ("fields", "tpf", "words"),
    [
        ({"generation_mode": "diffusion", "block_length": 16, "max_denoising_steps": 4}, 3.0, "no confidence_thresh"),
        ({"generation_mode": "diffusion", "block_length": 16, "confidence_threshold": None}, 0.8, "one token per forw"),
        (
            {"generation_mode": "diffusion", "block_length": 16, "confidence_threshold": None,
             "max_denoising_steps": 16}, 0.8, "one token per forward",
        ),
        ({"generation_mode": "diffusion", "confidence_threshold": 1.0, "block_length": 16}, 0.9, "no faster than AR"),
        ({"generation_mode": "self_speculation", "block_length": 32}, 8.0, "checkpoint's own is 16"),
        ({"generation_mode": "diffusion", "confidence_threshold": 0.9, "block_length": 16}, 6.0, ""),
        ({"generation_mode": "autoregressive"}, 1.0, ""),
    ],
)  # fmt: skip
def test_traps_are_named(fields: dict[str, object], tpf: float, words: str) -> None:
    found = traps(fields, 16, tpf)
    assert (found == []) if not words else any(words in trap for trap in found)


def test_a_trap_is_told_once_for_all_settings_in_it() -> None:
    rows = quality_rows([BASE, *(line("self_speculation", n, 5.0, block=32) for n in range(3))])
    assert warnings(rows, 16) == ["3 settings: block_length 32; the checkpoint's own is 16"]
    assert warnings(rows, None) == []
