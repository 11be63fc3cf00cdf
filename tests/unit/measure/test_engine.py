"""What `make bench-engine` makes of its turns."""

from __future__ import annotations

import pytest

from dlm_sglang.measure.engine import Round, _cell, _Samples


def _samples(*tok_s: float) -> _Samples:
    """Turns of two rounds each, of one row and one token."""
    samples = _Samples()
    records = [Round("decode", float(start), start + 0.9, 0.5, 1, 1, None) for start in range(2)]
    for speed in tok_s:
        samples.add(records, speed, 2, 1)
    return samples


@pytest.mark.parametrize(
    ("ours", "plain", "quartiles"),
    [
        ((110.0,), (100.0,), (1.1, 1.1, 1.1)),
        ((100.0, 220.0, 360.0), (100.0, 110.0, 120.0), (1.5, 2.0, 2.5)),
    ],
    ids=["one turn", "turns of a machine that drifts"],
)
def test_a_mode_is_compared_within_each_turn(
    ours: tuple[float, ...], plain: tuple[float, ...], quartiles: tuple[float, float, float]
) -> None:
    cell = _cell("autoregressive", 1, _samples(*ours), _samples(*plain), 1.0)
    assert (cell.low, cell.over_plain, cell.high) == quartiles
    assert (cell.round_ms, cell.forward_ms, cell.host_ms) == (1000.0, 500.0, 500.0)
