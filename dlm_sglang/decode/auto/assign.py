"""The block lengths that give a batch the most tokens per second.

A block of B positions is drafted in one forward and verified in another, both over B query tokens: half its accept
length is won in each round for B query tokens. A round's time depends on the sum of query tokens alone, so for any
such sum the best rows to spend it on are those with the most tokens won per query token; what is left is to try
the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

AUTOREGRESSIVE = 1
# Sums that are tried at most.
_MAX_TRIES = 40


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


# Seconds of a round by its query tokens.
SecondsOf = Callable[[int], float]


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
    steps = sorted(
        ((gain / tokens, row, number, gain, tokens) for row, offer in enumerate(offers)
         for number, gain, tokens in _hull(offer)),
        key=lambda step: (-step[0], step[2], step[1]),
    )  # fmt: skip
    chosen = [0] * len(offers)
    gain = others.gain + sum(offer.gains[0] for offer in offers)
    tokens = others.num_tokens + sum(offer.block_lengths[0] for offer in offers)
    best_rate, best_count = gain / seconds_of(tokens), 0
    stride = max(1, len(steps) // _MAX_TRIES)
    for count, (_, _, _, more_gain, more_tokens) in enumerate(steps, start=1):
        gain, tokens = gain + more_gain, tokens + more_tokens
        if count % stride and count < len(steps):
            continue
        rate = gain / seconds_of(tokens)
        if rate > best_rate:
            best_rate, best_count = rate, count
    for _, row, number, _, _ in steps[:best_count]:
        chosen[row] = number
    lengths = tuple(offer.block_lengths[number] for offer, number in zip(offers, chosen, strict=True))
    return Assignment(lengths, best_rate)


def rate_of(block_lengths: Sequence[int], offers: Sequence[Offer], others: Others, seconds_of: SecondsOf) -> float:
    """Tokens per second that an assignment gives the whole batch."""
    gain = others.gain + sum(offer.gain(length) for offer, length in zip(offers, block_lengths, strict=True))
    return gain / seconds_of(others.num_tokens + sum(block_lengths))


def _hull(offer: Offer) -> list[tuple[int, float, int]]:
    """Steps up from the shortest block, each less worthwhile per query token than the one before it.

    Returns:
        For each step the number of the block length that it leads to, the gain and the query tokens that it adds.
    """
    steps: list[tuple[int, float, int]] = []
    at = 0
    while at + 1 < len(offer.block_lengths):
        ratios = [
            ((offer.gains[to] - offer.gains[at]) / (offer.block_lengths[to] - offer.block_lengths[at]), to)
            for to in range(at + 1, len(offer.block_lengths))
        ]
        slope, to = max(ratios)
        if slope <= 0:
            break
        steps.append((to, offer.gains[to] - offer.gains[at], offer.block_lengths[to] - offer.block_lengths[at]))
        at = to
    return steps
