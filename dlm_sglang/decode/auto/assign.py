"""The block lengths that give a batch the most tokens per second.

A block of B positions is drafted in one forward and verified in another, both over B query tokens: half its accept
length is won in each round for B query tokens. A round's time depends on the sum of query tokens alone, so for any
such sum the best rows to spend it on are those with the most tokens won per query token; what is left is to try
the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

AUTOREGRESSIVE = 1
# Sums that are tried at most.
_MAX_TRIES = 40
# Steps within this share of each other are worth the same.
_ALIKE = 0.05


@dataclass(frozen=True)
class Offer:
    """What one row may decode with.

    Attributes:
        block_lengths: ascending; the first is the shortest, usually 1.
        gains: tokens won per round with each of them.
    """

    block_lengths: tuple[int, ...]
    gains: tuple[float, ...]

    def gain(self, block_length: int) -> float:
        return self.gains[self.block_lengths.index(block_length)]


@dataclass(frozen=True)
class Others:
    """Rows of the batch whose block lengths are fixed.

    Attributes:
        num_tokens: query tokens of a round.
        gain: tokens won per round.
    """

    num_tokens: int = 0
    gain: float = 0.0


@dataclass(frozen=True)
class Assignment:
    """A block length for each row, and the tokens per second that are expected of the whole batch."""

    block_lengths: tuple[int, ...]
    tok_s: float


# Seconds of a round by its query tokens and the tokens that it wins.
SecondsOf = Callable[[int, float], float]


def gain_of(block_length: int, accept_length: float) -> float:
    """Tokens won per round."""
    return 1.0 if block_length == AUTOREGRESSIVE else accept_length / 2


def best_assignment(offers: Sequence[Offer], others: Others, seconds_of: SecondsOf) -> Assignment:
    """The fastest assignment.

    Args:
        offers: R >= 1 rows.
        others: the rest of the batch.
        seconds_of: of the whole batch's rounds.
    """
    steps_of = {offer: _steps(offer) for offer in set(offers)}
    steps = sorted((*step[:2], row, step) for row, offer in enumerate(offers) for step in steps_of[offer])
    chosen = [0] * len(offers)
    gain = others.gain + sum(offer.gains[0] for offer in offers)
    tokens = others.num_tokens + sum(offer.block_lengths[0] for offer in offers)
    best_rate, best_count = gain / seconds_of(tokens, gain), 0
    stride = max(1, len(steps) // _MAX_TRIES)
    for count, (_, _, _, step) in enumerate(steps, start=1):
        gain, tokens = gain + step.gain, tokens + step.num_tokens
        if count % stride and count < len(steps):
            continue
        rate = gain / seconds_of(tokens, gain)
        if rate > best_rate:
            best_rate, best_count = rate, count
    for _, number, row, _ in steps[:best_count]:
        chosen[row] = number
    lengths = tuple(offer.block_lengths[number] for offer, number in zip(offers, chosen, strict=True))
    return Assignment(lengths, best_rate)


def rate_of(block_lengths: Sequence[int], offers: Sequence[Offer], others: Others, seconds_of: SecondsOf) -> float:
    """Tokens per second that an assignment gives the whole batch."""
    gain = others.gain + sum(offer.gain(length) for offer, length in zip(offers, block_lengths, strict=True))
    return gain / seconds_of(others.num_tokens + sum(block_lengths), gain)


class _Step(NamedTuple):
    """From one block length to the next longer one.

    Attributes:
        rank: the less, the more tokens are won per query token; where it takes several steps together to be worth
            it, that of all of them. Steps that are worth about the same rank equal and are taken row by row: none
            gets all while its like gets nothing.
        number: of the block length that the step leads to.
        gain, num_tokens: what the step adds.
    """

    rank: int
    number: int
    gain: float
    num_tokens: int


def _steps(offer: Offer) -> list[_Step]:
    """Steps up from the shortest block, none worth more than the one before it."""
    steps: list[_Step] = []
    at = 0
    while at + 1 < len(offer.block_lengths):
        worth, to = max(
            ((offer.gains[to] - offer.gains[at]) / (offer.block_lengths[to] - offer.block_lengths[at]), to)
            for to in range(at + 1, len(offer.block_lengths))
        )
        if worth <= 0:
            break
        rank = -round(math.log(worth) / _ALIKE)
        for number in range(at + 1, to + 1):
            gain = offer.gains[number] - offer.gains[number - 1]
            steps.append(_Step(rank, number, gain, offer.block_lengths[number] - offer.block_lengths[number - 1]))
        at = to
    return steps
