"""Putting `auto` beside the best fixed setting."""

from __future__ import annotations

from dlm_sglang.measure.auto_bench import AUTO, FIXED, as_table, compare
from dlm_sglang.measure.store import Line


def _line(setting: str, concurrency: int, repetition: int, tok_s: float) -> Line:
    key = {"setting": setting, "concurrency": concurrency, "rate_s": None, "repetition": repetition}
    return {"kind": "measurement", "key": key, "numbers": {"tok_s": tok_s}}


def test_auto_is_compared_with_the_best_fixed_setting_within_each_repetition() -> None:
    # The machine was half as fast in the second repetition, which ran backwards.
    lines = [_line(one.label, 8, 0, 100.0 + number) for number, one in enumerate(FIXED)]
    lines.append(_line(AUTO.label, 8, 0, 101.0))
    lines.append(_line(AUTO.label, 8, 1, 51.5))
    lines += [_line(one.label, 8, 1, 50.0 + number / 2) for number, one in enumerate(FIXED)][::-1]
    (found,) = compare(lines)
    assert found.best_fixed == FIXED[-1].label
    assert found.ratios == (101 / 103, 1.0)
    assert found.ratio == (101 / 103 + 1.0) / 2
    assert FIXED[-1].label in as_table([found])
