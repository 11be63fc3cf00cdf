"""Round times learnt from rounds, and guessed for shapes that did not run."""

from __future__ import annotations

import random

import pytest

from dlm_sglang.decode.auto.round_time import RoundShape, RoundTimes


def _roofline_s(shape: RoundShape) -> float:
    return 4e-3 * max(1.0, shape.num_tokens / 206) + 1e-5 * shape.num_rows + 5e-9 * shape.num_kv_tokens


def _shape(num_rows: int, width: int, context: int = 500) -> RoundShape:
    return RoundShape(num_rows, num_rows * width, num_rows * context)


def test_a_shape_that_ran_has_its_mean_time() -> None:
    times, rng = RoundTimes(), random.Random(0)
    for _ in range(50):
        for num_rows, width in ((1, 32), (8, 16), (64, 1)):
            shape = _shape(num_rows, width)
            times.observe(shape, _roofline_s(shape) * rng.uniform(0.95, 1.05))
    for num_rows, width in ((1, 32), (8, 16), (64, 1)):
        shape = _shape(num_rows, width)
        assert times.seconds(shape) == pytest.approx(_roofline_s(shape), rel=0.06)
        assert times.num_seen(shape) > 10


def test_shapes_that_never_ran_are_guessed_from_those_that_did() -> None:
    times = RoundTimes()
    for num_rows, width in ((1, 1), (1, 32), (4, 32), (16, 8), (16, 32), (64, 1), (64, 8)):
        for _ in range(6):
            times.observe(_shape(num_rows, width), _roofline_s(_shape(num_rows, width)))
    for num_rows, width in ((2, 16), (8, 16), (16, 16), (32, 32), (64, 16), (64, 32)):
        shape = _shape(num_rows, width)
        assert times.num_seen(shape) == 0
        assert times.seconds(shape) == pytest.approx(_roofline_s(shape), rel=0.3)


def test_more_work_never_takes_less_time_by_a_guess() -> None:
    times, rng = RoundTimes(), random.Random(1)
    for _ in range(30):
        shape = _shape(rng.choice([1, 2, 4]), rng.choice([1, 8]))
        times.observe(shape, 5e-3 * rng.uniform(0.5, 1.5))
    guesses = [times.seconds(_shape(32, width)) for width in (8, 16, 32)]
    assert guesses == sorted(guesses)


def test_one_round_that_waited_spoils_nothing() -> None:
    times, shape = RoundTimes(), _shape(8, 8)
    for number in range(40):
        times.observe(shape, 1.0 if number in (0, 20) else 5e-3)
    assert times.seconds(shape) == pytest.approx(5e-3, rel=0.1)


def test_a_machine_that_became_slower_is_noticed() -> None:
    times, shape = RoundTimes(), _shape(8, 8)
    for number in range(120):
        times.observe(shape, 5e-3 if number < 40 else 15e-3)
    assert times.seconds(shape) == pytest.approx(15e-3, rel=0.1)


def test_a_machine_that_became_slower_is_slower_for_shapes_that_did_not_run_since() -> None:
    times, one, other = RoundTimes(), _shape(8, 8), _shape(8, 32)
    for _ in range(40):
        times.observe(one, 5e-3)
        times.observe(other, 8e-3)
    for _ in range(60):
        times.observe(one, 15e-3)
    assert times.seconds(one) == pytest.approx(15e-3, rel=0.15)
    assert times.seconds(other) == pytest.approx(24e-3, rel=0.25)


def test_a_shape_that_alone_became_slower_is_told_apart_once_others_run() -> None:
    times, one, other = RoundTimes(), _shape(8, 8), _shape(8, 32)
    for slower in (1, 3):
        for _ in range(150):
            times.observe(one, 5e-3 * slower)
            times.observe(other, 8e-3)
    assert times.seconds(one) == pytest.approx(15e-3, rel=0.15)
    assert times.seconds(other) == pytest.approx(8e-3, rel=0.15)


def test_what_was_timed_long_ago_counts_as_hardly_known() -> None:
    times, one, other = RoundTimes(), _shape(8, 8), _shape(8, 32)
    for _ in range(20):
        times.observe(one, 5e-3)
    assert times.num_seen(one) > 10
    for _ in range(12_000):
        times.observe(other, 8e-3)
    assert times.num_seen(one) < 3


def test_without_any_round_the_prior_is_flat_up_to_the_free_tokens() -> None:
    times = RoundTimes()
    assert times.seconds(_shape(1, 32)) == pytest.approx(times.seconds(_shape(1, 8)), rel=0.3)
    assert times.seconds(_shape(64, 32)) > 4 * times.seconds(_shape(1, 32))
