"""How long requests stay, and what it costs the batch that others arrive: learnt from every round under `auto`.

A round that a request arrives in is followed by a prefill, which the whole batch waits for. How long that takes depends
on the prompts, which come whatever the block lengths, and on a floor: the same for one prompt and for ten. Where
answers are short and requests many, each round pays the floor; fewer, longer rounds pay it less often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# What a round told keeps this share of its weight when the next one comes.
_MEMORY = 0.998
# Until then as if one request had stayed for so many rounds and won two tokens in each.
_PRIOR_ROUNDS = 32.0
_PRIOR_TOKENS = 2 * _PRIOR_ROUNDS
# The floor follows what is below it faster than what is above it.
_DOWN, _UP = 0.3, 0.01


@dataclass
class Arrivals:
    """Of the requests under `auto`.

    Attributes:
        floor_s: seconds that a prefill takes at least; 0 before the first.
    """

    floor_s: float = 0.0
    _row_rounds: float = _PRIOR_ROUNDS
    _arrivals: float = 1.0
    _tokens: float = _PRIOR_TOKENS

    def count_round(self, num_rows: int, num_new: int) -> None:
        """A round with so many requests, some of which join in it."""
        self._row_rounds = _MEMORY * self._row_rounds + num_rows
        self._arrivals = _MEMORY * self._arrivals + num_new
        self._tokens *= _MEMORY

    def count_tokens(self, count: int) -> None:
        """Tokens that a request won."""
        self._tokens += count

    def observe_prefill(self, seconds: float) -> None:
        """Learn what a prefill took; one after an idle time seems longer and tells nothing."""
        if self.floor_s == 0 or seconds < self.floor_s:
            self.floor_s += (seconds - self.floor_s) * (_DOWN if self.floor_s else 1.0)
        else:
            self.floor_s *= 1 + _UP

    @property
    def mean_rounds(self) -> float:
        """Rounds that a request stays for, on average, and goes on for at any time: by Little's law."""
        return self._row_rounds / max(self._arrivals, 1.0)

    def interruption_s(self, gain: float) -> float:
        """Seconds that a round is followed by, on average, for prefills' floors.

        Args:
            gain: tokens that the batch wins per round: as many requests end as that completes, and others arrive.
        """
        return self.floor_s * -math.expm1(-gain * self._arrivals / max(self._tokens, 1.0))
