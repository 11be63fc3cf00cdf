"""Diffusion under a latency budget: what blocks may take, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm_sglang.decode.budget import BudgetBounds, BudgetRow, Effort

BOUNDS = BudgetBounds(min_confidence_threshold=0.5, min_denoising_steps=2)
ASKED = Effort(16, 0.9)
ROUND_S = 0.01


def _row(budget_s: float, asked: Effort = ASKED, bounds: BudgetBounds = BOUNDS) -> BudgetRow:
    return BudgetRow(budget_s, 100.0, 16, 160, asked, bounds)


def _rounds(effort: Effort, natural_steps: int) -> int:
    """Rounds of a block: fewer steps under a lower threshold, in proportion."""
    threshold = effort.confidence_threshold
    share = 1.0 if threshold is None else threshold / 0.9
    return 1 + min(effort.max_denoising_steps, max(1, round(natural_steps * share)))


def _decode(row: BudgetRow, natural_steps: int, round_s: float = ROUND_S) -> float:
    """Seconds until the request's tokens are out."""
    now_s, emitted = row.arrived_s, 0
    while emitted < row.max_new_tokens:
        row.give(row.choose(now_s, emitted, ROUND_S))
        for is_denoise in [*[True] * (_rounds(row.now, natural_steps) - 1), False]:
            now_s += round_s
            row.processed(now_s, is_denoise=is_denoise)
        emitted += row.block_length
    return now_s - row.arrived_s


def test_with_time_enough_nothing_is_given_up() -> None:
    row = _row(budget_s=10.0)
    took_s = _decode(row, natural_steps=8)
    assert row.least == ASKED
    assert row.report(took_s) == {
        "budget_ms": 10_000,
        "took_ms": round(1e3 * took_s),
        "is_met": True,
        "loosened_blocks": 0,
        "max_denoising_steps": 16,
        "confidence_threshold": 0.9,
    }


@pytest.mark.parametrize("budget_s", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("natural_steps", [5, 8, 15])
def test_a_short_budget_is_met_by_fewer_steps_and_a_lower_threshold(budget_s: float, natural_steps: int) -> None:
    row = _row(budget_s)
    unbounded_s = 10 * (1 + natural_steps) * ROUND_S
    took_s = _decode(row, natural_steps)
    assert took_s <= budget_s + 1e-9
    if unbounded_s > budget_s:
        assert row.num_loosened > 0
        assert row.least != ASKED


def test_the_budget_is_used_not_undercut_by_far() -> None:
    took_s = _decode(_row(0.6), natural_steps=15)
    assert took_s > 0.4


def test_rounds_that_become_slower_are_made_up_for() -> None:
    row = _row(1.2)
    assert _decode(row, natural_steps=8, round_s=2 * ROUND_S) <= 1.2
    assert row.num_loosened > 0


def test_the_operators_bounds_hold_even_if_the_budget_is_missed() -> None:
    row = _row(budget_s=0.001)
    took_s = _decode(row, natural_steps=8)
    assert row.least == Effort(2, 0.5)
    assert row.report(took_s)["is_met"] is False


def test_what_a_request_asked_for_below_the_bounds_is_left_alone() -> None:
    row = _row(0.001, asked=Effort(1, 0.3))
    _decode(row, natural_steps=8)
    assert row.least == Effort(1, 0.3)
    assert row.num_loosened == 0


def test_an_even_schedule_has_no_threshold_to_lower() -> None:
    row = _row(0.5, asked=Effort(16, None))
    _decode(row, natural_steps=16)
    assert row.least.confidence_threshold is None
    assert 2 <= row.least.max_denoising_steps < 16


def test_without_any_timing_nothing_is_given_up_yet() -> None:
    assert _row(0.001).choose(100.0, 0, None) == ASKED


def test_a_choice_is_due_at_each_block_and_after_a_retraction() -> None:
    row = _row(0.5)
    assert row.is_due
    assert row.give(replace(ASKED, max_denoising_steps=4))
    assert not row.is_due
    row.processed(100.01, is_denoise=True)
    assert not row.is_due
    row.processed(100.02, is_denoise=False)
    assert row.is_due
    assert not row.give(row.now)
    row.interrupted()
    assert row.is_due
