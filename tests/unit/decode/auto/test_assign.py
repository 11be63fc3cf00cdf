"""The fastest block lengths of a batch, against trying all of them."""

from __future__ import annotations

import itertools
import random

import pytest

from dlm_sglang.decode.auto.assign import Offer, Others, best_assignment, gain_of, rate_of

LENGTHS = (1, 8, 16, 32)


def _offer(rng: random.Random) -> Offer:
    hazard = rng.choice([0.01, 0.05, 0.2, 0.7])
    accepted = [sum((1 - hazard) ** position for position in range(length)) for length in LENGTHS]
    return Offer(LENGTHS, tuple(gain_of(*pair) for pair in zip(LENGTHS, accepted, strict=True)))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_assignment_is_much_faster(seed: int) -> None:
    rng = random.Random(seed)
    offers = [_offer(rng) for _ in range(4)]
    free, others = rng.choice([2, 16, 40, 90]), Others(rng.choice([0, 40]), rng.choice([0.0, 3.0]))

    def seconds_of(num_tokens: int, gain: float) -> float:
        return max(1.0, num_tokens / free)

    best = best_assignment(offers, others, seconds_of)
    assert best.tok_s == pytest.approx(rate_of(best.block_lengths, offers, others, seconds_of))
    tried = max(
        rate_of(lengths, offers, others, seconds_of) for lengths in itertools.product(LENGTHS, repeat=len(offers))
    )
    # Sums of query tokens between two steps are left out.
    assert best.tok_s >= 0.93 * tried


def test_free_tokens_are_all_used_and_dear_ones_not() -> None:
    offers = [_offer(random.Random(3))] * 3
    assert best_assignment(offers, Others(), lambda tokens, gain: 1.0).block_lengths == (32, 32, 32)
    assert best_assignment(offers, Others(), lambda tokens, gain: float(tokens)).block_lengths == (1, 1, 1)


def test_query_tokens_go_to_the_rows_that_are_easy_to_draft_for() -> None:
    def offer(hazard: float) -> Offer:
        accepted = [sum((1 - hazard) ** position for position in range(length)) for length in LENGTHS]
        return Offer(LENGTHS, tuple(gain_of(*pair) for pair in zip(LENGTHS, accepted, strict=True)))

    offers = [offer(0.01), offer(0.7), offer(0.01), offer(0.7)]
    lengths = best_assignment(offers, Others(), lambda tokens, gain: max(1.0, tokens / 24)).block_lengths
    assert min(lengths[0], lengths[2]) > max(lengths[1], lengths[3])


def test_rows_alike_get_lengths_alike_even_if_one_long_block_were_worth_more() -> None:
    """With perfect drafts the longest block is worth the most per query token, so two rows could take all."""
    perfect = Offer(LENGTHS, (1.0, 4.0, 8.0, 16.0))
    almost = Offer(LENGTHS, (1.0, 3.99, 7.98, 15.9))
    lengths = best_assignment([perfect, almost] * 4, Others(), lambda tokens, gain: max(1.0, tokens / 64)).block_lengths
    assert max(lengths) / min(lengths) <= 2
