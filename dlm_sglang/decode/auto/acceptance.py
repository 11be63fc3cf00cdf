"""How many tokens a block wins: learnt from every verified block, shared by all requests, bent by each one's own.

A draft at position i of a block is confirmed only if those before it were, so a block's yield is a survival curve.
All requests share its hazard, position by position; a request has one factor on it, the ratio of the failures it had
to those the shared curve expected, drawn towards 1 while little is known (a gamma frailty model). Positions that were
seldom reached are expected to be as those before them, so that longer blocks are tried where shorter ones do well.

Blocks of one length do not fail where those of another do: an answer of 20 tokens ends in the first block of 32 or in
the second one of 16. What blocks of each length won beside what the curve expected of them corrects it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

# Published accept lengths (6.42, 9.49, 11.92 for blocks of 8, 16, 32) follow from about this rate of failure.
PRIOR_HAZARD = 0.065
_PRIOR_TRIALS = 8.0
# What a block told keeps this share of its weight when the next one arrives; and when one arrives that does not get
# there, so that a length which once seemed bad is tried again some thousand blocks later.
_SHARED_MEMORY = 0.996
_UNSEEN_MEMORY = 0.998
_REQUEST_MEMORY = 0.9
# Likewise with each round in which a request drafts nothing.
_IDLE_MEMORY = 0.99
_REQUEST_PRIOR = 4.0
# Of the correction for a block length: memory, of blocks of any length, and the tokens that "none" is worth.
_LENGTH_MEMORY, _LENGTH_PRIOR = 0.99, 150.0
_MAX_HAZARD = 0.98
_MIN_FACTOR, _MAX_FACTOR = 0.05, 20.0


@dataclass
class Frailty:
    """One request's factor on the shared hazard.

    Attributes:
        failures: drafts of it that were the first wrong one, old ones counting less.
        expected: as many as the shared curve expected for the same drafts.
    """

    failures: float = 0.0
    expected: float = 0.0

    @property
    def factor(self) -> float:
        """1 is the average request; less is easier to draft for."""
        ratio = (self.failures + _REQUEST_PRIOR) / (self.expected + _REQUEST_PRIOR)
        return min(max(ratio, _MIN_FACTOR), _MAX_FACTOR)

    def observe(self, failures: float, expected: float) -> None:
        """Add one block."""
        self._keep(_REQUEST_MEMORY)
        self.failures += failures
        self.expected += expected

    def idle(self, num_rounds: int) -> None:
        """Forget some: in these rounds nothing was drafted, and the text may be another by now."""
        self._keep(_IDLE_MEMORY**num_rounds)

    def _keep(self, share: float) -> None:
        self.failures *= share
        self.expected *= share


@dataclass
class _Correction:
    """What blocks of one length won, and what the curve expected of them: tokens, old ones counting less."""

    won: float = 0.0
    expected: float = 0.0

    @property
    def factor(self) -> float:
        return (self.won + _LENGTH_PRIOR) / (self.expected + _LENGTH_PRIOR)

    def fade(self) -> None:
        self.won *= _LENGTH_MEMORY
        self.expected *= _LENGTH_MEMORY

    def observe(self, won: float, expected: float) -> None:
        self.won += won
        self.expected += expected


@dataclass
class AcceptCurve:
    """The shared hazard by draft position, in groups that double: 0, 1-2, 3-6, 7-14, 15-30, ...

    A block of 2, 4, 8, 16, ... positions has whole groups of drafts.

    Attributes:
        max_block_length: longest block that is asked about.
        num_observations: blocks seen so far.
    """

    max_block_length: int
    num_observations: int = 0
    _groups: list[tuple[int, int]] = field(default_factory=list)
    _trials: list[float] = field(default_factory=list)
    _failures: list[float] = field(default_factory=list)
    _hazards: list[float] = field(default_factory=list)
    _corrections: defaultdict[int, _Correction] = field(default_factory=lambda: defaultdict(_Correction))

    def __post_init__(self) -> None:
        start, num_drafts = 0, self.max_block_length - 1
        while start < num_drafts:
            self._groups.append((start, min(2 * start + 1, num_drafts)))
            start = 2 * start + 1
        self._trials = [0.0] * len(self._groups)
        self._failures = [0.0] * len(self._groups)
        self._hazards = [PRIOR_HAZARD] * len(self._groups)

    def observe(self, block_length: int, accept_len: int, frailty: Frailty | None = None) -> None:
        """Learn from a verified block, for all requests and for its own.

        A block that the request's end cut counts as one that failed there: what a block is worth includes that.

        Args:
            block_length: positions of the block, the seed included.
            accept_len: tokens that it emitted, the bonus token included.
            frailty: of the block's request; changed. None where its block length is fixed.
        """
        factor = 1.0 if frailty is None else frailty.factor
        for correction in self._corrections.values():
            correction.fade()
        self._corrections[block_length].observe(accept_len, self._by_curve((block_length,), factor)[0])
        num_drafts = min(block_length, self.max_block_length) - 1
        num_correct = min(max(accept_len - 1, 0), num_drafts)
        has_failed = num_correct < num_drafts
        num_tried = num_correct + has_failed
        expected, before = 0.0, PRIOR_HAZARD
        for group, (start, end) in enumerate(self._groups):
            tried = max(0, min(end, num_tried) - start)
            failed = has_failed and start <= num_correct < end
            expected += tried * self._hazards[group]
            kept = _SHARED_MEMORY if tried else _UNSEEN_MEMORY
            trials = self._trials[group] = kept * self._trials[group] + tried
            failures = self._failures[group] = kept * self._failures[group] + failed
            before = self._hazards[group] = (failures + _PRIOR_TRIALS * before) / (trials + _PRIOR_TRIALS)
        if frailty is not None:
            frailty.observe(float(has_failed), expected)
        self.num_observations += 1

    def accept_length(self, block_length: int, factor: float = 1.0) -> float:
        """Expected tokens of a block, the bonus token included; 1 for a block of one position."""
        return self.accept_lengths((block_length,), factor)[0]

    def accept_lengths(self, block_lengths: Sequence[int], factor: float = 1.0) -> list[float]:
        """`accept_length` of each of some block lengths, ascending."""
        by_curve = self._by_curve(block_lengths, factor)
        return [
            min(tokens * self._corrections[length].factor, float(length)) if length in self._corrections else tokens
            for length, tokens in zip(block_lengths, by_curve, strict=True)
        ]

    def _by_curve(self, block_lengths: Sequence[int], factor: float) -> list[float]:
        found: list[float] = []
        tokens, alive, at = 1.0, 1.0, 0
        groups = iter(self._groups)
        group, (_, end) = 0, next(groups)
        kept = self._kept(0, factor)
        for block_length in block_lengths:
            while at < block_length - 1:
                if at == end:
                    group, (_, end) = group + 1, next(groups)
                    kept = self._kept(group, factor)
                count = min(end, block_length - 1) - at
                after = kept**count
                tokens += alive * (kept * (1 - after) / (1 - kept) if kept < 1 else count)
                alive *= after
                at += count
            found.append(tokens)
        return found

    def _kept(self, group: int, factor: float) -> float:
        """The chance to pass one position of the group."""
        return float((1 - min(self._hazards[group], _MAX_HAZARD)) ** factor)
