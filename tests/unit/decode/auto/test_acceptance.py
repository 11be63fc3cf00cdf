"""Accept lengths learnt from blocks: the shared curve, and each request's factor on it."""

from __future__ import annotations

import random

import pytest

from dlm_sglang.decode.auto.acceptance import AcceptCurve, Frailty


def _accepted(rng: random.Random, block_length: int, hazard: float) -> int:
    for position in range(block_length - 1):
        if rng.random() < hazard:
            return position + 1
    return block_length


def _mean_accepted(block_length: int, hazard: float) -> float:
    return sum((1 - hazard) ** position for position in range(block_length))


def test_a_block_of_one_position_wins_one_token_and_no_block_more_than_its_length() -> None:
    curve = AcceptCurve(32)
    assert curve.accept_length(1) == 1
    for block_length in (2, 3, 8, 16, 32):
        assert 1 < curve.accept_length(block_length) < block_length
        assert curve.accept_length(block_length, 1e-9) == pytest.approx(block_length)
        assert curve.accept_length(block_length, 1e9) == pytest.approx(1)


def test_before_anything_is_seen_the_published_accept_lengths_are_expected() -> None:
    curve = AcceptCurve(32)
    for block_length, published in ((8, 6.42), (16, 9.49), (32, 11.92)):
        assert curve.accept_length(block_length) == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize("hazard", [0.02, 0.2, 0.6])
def test_the_curve_comes_to_what_the_blocks_win(hazard: float) -> None:
    rng = random.Random(1)
    curve = AcceptCurve(32)
    for _ in range(600):
        block_length = rng.choice([8, 16, 32])
        curve.observe(block_length, _accepted(rng, block_length, hazard), Frailty())
    for block_length in (8, 16, 32):
        assert curve.accept_length(block_length) == pytest.approx(_mean_accepted(block_length, hazard), rel=0.15)


def test_long_blocks_are_expected_to_go_on_as_short_ones_end_until_they_are_seen() -> None:
    rng = random.Random(2)
    curve = AcceptCurve(32)
    for _ in range(400):
        curve.observe(8, _accepted(rng, 8, 0.01))
    assert curve.accept_length(8) > 7.5
    assert curve.accept_length(32) > 25
    for _ in range(4):
        curve.observe(32, 16)
    assert curve.accept_length(16) > 14
    assert curve.accept_length(32) < 22


def test_a_length_that_once_seemed_bad_is_expected_to_be_better_long_after() -> None:
    rng = random.Random(5)
    curve = AcceptCurve(32)
    for _ in range(100):
        curve.observe(32, 16)
    after_bad_ones = curve.accept_length(32)
    for _ in range(6000):
        curve.observe(16, _accepted(rng, 16, 0.01))
    assert curve.accept_length(32) > 1.5 * after_bad_ones


def test_each_length_comes_to_what_its_own_blocks_win() -> None:
    """Answers of 20 tokens: the curve alone would expect 15 of a block of 32."""
    curve = AcceptCurve(32)
    for _ in range(200):
        for block_length, accept_len in ((32, 20), (16, 16), (16, 4)):
            curve.observe(block_length, accept_len)
    assert curve.accept_length(16) == pytest.approx(10, rel=0.1)
    assert curve.accept_length(32) == pytest.approx(20, rel=0.1)


def test_an_easy_and_a_hard_request_are_told_apart_within_a_few_blocks() -> None:
    rng = random.Random(3)
    curve, easy, hard = AcceptCurve(32), Frailty(), Frailty()
    for _ in range(12):
        curve.observe(16, _accepted(rng, 16, 0.01), easy)
        curve.observe(16, _accepted(rng, 16, 0.4), hard)
    assert easy.factor < 0.6
    assert hard.factor > 1.3
    assert curve.accept_length(16, easy.factor) > 1.5 * curve.accept_length(16, hard.factor)
    assert Frailty().factor == 1


def test_what_changed_is_learnt_anew() -> None:
    rng = random.Random(4)
    curve = AcceptCurve(32)
    for hazard in (0.4, 0.02):
        for _ in range(1000):
            curve.observe(16, _accepted(rng, 16, hazard), Frailty())
    assert curve.accept_length(16) == pytest.approx(_mean_accepted(16, 0.02), rel=0.15)
