"""Diffusion that settles for less where a latency budget would else be missed: host arithmetic, no tensors.

After every block the time left is shared out over the blocks left, as if the answer came to use all its tokens. What
that leaves for a block, in rounds, bounds its denoising steps; the confidence threshold falls in the proportion in
which it is less than a block takes as the request asked for it. Both stop at the operator's bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

# Tokens that a denoise forward fills where nothing is known yet: published for confidence 0.9.
TOKENS_PER_FORWARD = 3.0
# Share of a new block in what a block is said to take.
_NEW_SHARE = 0.3


@dataclass(frozen=True)
class BudgetBounds:
    """How far quality may be given up.

    Attributes:
        min_confidence_threshold: no threshold is lowered below; a lower one that a request asked for stays.
        min_denoising_steps: no number of steps is lowered below; likewise.
    """

    min_confidence_threshold: float
    min_denoising_steps: int


@dataclass(frozen=True)
class Effort:
    """What a block may take.

    Attributes:
        max_denoising_steps: denoise forwards.
        confidence_threshold: None spreads masks evenly over the steps.
    """

    max_denoising_steps: int
    confidence_threshold: float | None


@dataclass
class BudgetRow:
    """One request with a budget.

    Attributes:
        budget_s: from its arrival to its last token.
        arrived_s: on the clock of whoever asks.
        asked: what its blocks take when there is time.
        now: what they take.
        is_due: a block began since the last choice.
        num_loosened: blocks that took less than was asked.
        least: the least effort that a block was given.
    """

    budget_s: float
    arrived_s: float
    block_length: int
    max_new_tokens: int
    asked: Effort
    bounds: BudgetBounds
    is_due: bool = True
    num_loosened: int = 0
    rounds_of_block: int = 0
    _block_began_s: float | None = None
    _round_s: float | None = None
    _asked_rounds: float | None = None

    def __post_init__(self) -> None:
        self.now = self.least = self.asked

    def processed(self, now_s: float, *, is_denoise: bool) -> None:
        """A round of the request was processed."""
        self.rounds_of_block += 1
        if is_denoise:
            return
        if self._block_began_s is not None:
            self._round_s = _mean(self._round_s, (now_s - self._block_began_s) / self.rounds_of_block)
        if self.now == self.asked:
            self._asked_rounds = _mean(self._asked_rounds, self.rounds_of_block)
        else:
            self.num_loosened += 1
        self._block_began_s, self.rounds_of_block, self.is_due = now_s, 0, True

    def interrupted(self) -> None:
        """A prefill of the request runs, the first or one after a retraction: no block is under way."""
        self._block_began_s, self.rounds_of_block, self.is_due = None, 0, True

    def choose(self, now_s: float, num_emitted: int, round_s: float | None) -> Effort:
        """The effort of the coming block.

        Args:
            now_s: on the clock of `arrived_s`.
            num_emitted: output tokens so far.
            round_s: what a round is expected to take while no block of the request was seen; None if unknown.
        """
        seconds = self._round_s or round_s
        if seconds is None or seconds <= 0:
            return self.now
        num_blocks = -(-max(self.max_new_tokens - num_emitted, 1) // self.block_length)
        left_s = max(self.arrived_s + self.budget_s - now_s, 0.0)
        rounds = left_s / num_blocks / seconds
        wanted = self._asked_rounds or 1 + min(self.asked.max_denoising_steps, self.block_length / TOKENS_PER_FORWARD)
        # The commit forward takes a round too.
        steps = self._bounded_steps(int(rounds) - 1)
        return Effort(steps, self._bounded_threshold(min(rounds / wanted, 1.0)))

    def give(self, effort: Effort) -> bool:
        """Let the coming block take this; whether that is a change."""
        is_change = effort != self.now
        self.now, self.is_due = effort, False
        threshold = effort.confidence_threshold
        least = self.least.confidence_threshold
        self.least = Effort(
            min(self.least.max_denoising_steps, effort.max_denoising_steps),
            None if threshold is None or least is None else min(least, threshold),
        )
        return is_change

    def report(self, took_s: float) -> dict[str, int | float | bool | None]:
        """What a response tells; steps and threshold are the least that a block was given."""
        return {
            "budget_ms": round(1e3 * self.budget_s),
            "took_ms": round(1e3 * took_s),
            "is_met": took_s <= self.budget_s,
            "loosened_blocks": self.num_loosened,
            "max_denoising_steps": self.least.max_denoising_steps,
            "confidence_threshold": self.least.confidence_threshold,
        }

    def _bounded_steps(self, steps: int) -> int:
        asked = self.asked.max_denoising_steps
        return min(asked, max(steps, self.bounds.min_denoising_steps, 1))

    def _bounded_threshold(self, share: float) -> float | None:
        asked = self.asked.confidence_threshold
        if asked is None:
            return None
        lowest = min(asked, self.bounds.min_confidence_threshold)
        # In hundredths: a change that small is not worth telling the device.
        return max(lowest, min(asked, round(lowest + share * (asked - lowest), 2)))


def _mean(before: float | None, new: float) -> float:
    return new if before is None else before + _NEW_SHARE * (new - before)
