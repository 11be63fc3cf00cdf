"""When to choose block lengths, and what to try so that the choice stays right.

The controller only decides: it is told what rounds took and what blocks won, and it is the same with or without a
real model behind it (`measure/auto_simulation.py` runs it on a roofline).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

from dlm_sglang.decode.auto.acceptance import AcceptCurve
from dlm_sglang.decode.auto.arrivals import Arrivals
from dlm_sglang.decode.auto.assign import (
    AUTOREGRESSIVE,
    Assignment,
    Offer,
    Others,
    SecondsOf,
    best_assignment,
    gain_of,
    rate_of,
)
from dlm_sglang.decode.auto.round_time import RoundShape, RoundTimes
from dlm_sglang.decode.auto.row import ROUNDS_PER_BLOCK, AutoRow

# Rounds between two decisions about an unchanged batch, and at least between any two.
DECIDE_EVERY = 16
DECIDE_AT_MOST_EVERY = 8
# What a change has to promise: it costs two wide rounds, of which about one is lost, and a new layout. The rounds that
# a request is likely to go on for have to win that back.
HYSTERESIS, ROUNDS_LOST = 1.04, 1.0
# Decisions that may leave things as they are: what is as fast may be less fair to some requests.
KEEP_AT_MOST = 8
# Rounds without a verified block, after which one request drafts a block all the same.
PROBE_EVERY = 64
# Rounds between two trials of a shape that was not timed lately; the first ones follow closer.
TRIAL_EVERY, FIRST_TRIALS_EVERY = 240, 24
TRIAL_ROUNDS = 4
# By how much longer a round is expected to take whose like never ran: of many guesses the shortest is a wrong one.
# Trials find out where that is too cautious.
CAUTION = 0.15
# A trial is worth it if the guess about the shape promises this share of the best rate.
TRIAL_PROMISE = 0.75
TIMED_ENOUGH = 3
_REFIT_EVERY = 64
# Factors within this share of each other count as one.
_FACTOR_STEP = 0.1


class Reason(IntEnum):
    """Why a request has the block length that it has."""

    NEWCOMER = 0
    FASTEST = 1
    ACCEPT_PROBE = 2
    TIME_TRIAL = 3
    MEMORY = 4

    @property
    def code(self) -> str:
        """As responses and metrics name it."""
        return self.name.lower()


@dataclass(frozen=True)
class Load:
    """The batch that a decision is about.

    Attributes:
        rows: the requests under `auto`.
        num_rows: all requests.
        others: those whose block length is fixed.
        num_kv_tokens: keys that all rows have in the cache.
        may_grow: KV slots for longer blocks are there.
    """

    rows: Sequence[AutoRow]
    num_rows: int
    others: Others
    num_kv_tokens: int
    may_grow: bool = True


@dataclass(frozen=True)
class Decision:
    """Block lengths for the rows of a load, and until when they hold.

    Attributes:
        newcomer: for a request that joins before the next decision.
        rounds: until the next decision, unless the batch changes.
    """

    block_lengths: tuple[int, ...]
    reason: Reason
    newcomer: int = AUTOREGRESSIVE
    rounds: int = DECIDE_EVERY


@dataclass(frozen=True)
class Expectation:
    """What the last decision expected, with all requests at one block length each.

    Attributes:
        num_rows: requests in the batch.
        round_s: seconds of a round by block length.
        tok_s: tokens per second of the batch by block length.
    """

    num_rows: int
    round_s: Mapping[int, float]
    tok_s: Mapping[int, float]


@dataclass
class AutoController:
    """Chooses block lengths for all requests of a server.

    Attributes:
        curve: what blocks win.
        times: what rounds take.
        arrivals: how long requests stay, and what others cost them.
        expectation: behind the last decision; None before the first.
    """

    max_block_length: int
    curve: AcceptCurve = field(init=False)
    times: RoundTimes = field(default_factory=RoundTimes)
    arrivals: Arrivals = field(default_factory=Arrivals)
    expectation: Expectation | None = None
    _newcomer: int = AUTOREGRESSIVE
    _rounds_left: int = 0
    _since_decision: int = DECIDE_AT_MOST_EVERY
    _since_trial: int = 0
    _num_trials: int = 0
    _since_probe: int = 0
    _seen_blocks: int = 0
    _turn: int = 0
    _is_trying: bool = False
    _times_kept: int = 0
    _offers: dict[tuple[tuple[int, ...], int], Offer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.curve = AcceptCurve(self.max_block_length)

    def observe_round(self, shape: RoundShape, seconds: float) -> None:
        """Learn what a round took."""
        self.times.observe(shape, seconds)
        if self.times.num_observations % _REFIT_EVERY == 0:
            self.times.refit()

    def observe_block(self, row: AutoRow | None, block_length: int, accept_len: int) -> None:
        """Learn what a block won; `row` is None for that of a request with a fixed block length."""
        if row is not None:
            self.arrivals.count_tokens(accept_len)
        if block_length > AUTOREGRESSIVE:
            self.curve.observe(block_length, accept_len, None if row is None else row.frailty)

    def is_due(self, rows: Sequence[AutoRow], *, has_changed: bool) -> bool:
        """Whether to decide before the coming round; asked once before each, with the same answer on every rank."""
        self._since_decision += 1
        self._rounds_left -= 1
        num_new = sum(row.is_new for row in rows)
        self.arrivals.count_round(len(rows), num_new)
        return (
            self._rounds_left <= 0
            or num_new == len(rows)
            or (has_changed and not self._is_trying and self._since_decision > DECIDE_AT_MOST_EVERY)
        )

    def decide(self, load: Load) -> Decision:
        """Choose block lengths for the coming rounds."""
        for row in load.rows:
            if row.target == AUTOREGRESSIVE and not row.is_new:
                row.frailty.idle(self._since_decision)
        self._offers.clear()
        full = [self._offer(row) for row in load.rows]
        offers = [_narrowed(offer, row, may_grow=load.may_grow) for offer, row in zip(full, load.rows, strict=True)]
        seconds_of = self._seconds_of(load)
        best = best_assignment(offers, load.others, seconds_of)
        now = tuple(
            wanted if row.is_new else row.target for row, wanted in zip(load.rows, best.block_lengths, strict=True)
        )
        current = rate_of(now, offers, load.others, seconds_of)
        threshold = max(HYSTERESIS, 1 + ROUNDS_LOST / self.arrivals.mean_rounds)
        stays = not self._is_trying and self._times_kept < KEEP_AT_MOST and best.tok_s < threshold * current
        self._times_kept = self._times_kept + 1 if stays else 0
        chosen = now if stays else best.block_lengths
        self._expect(load, full)
        # What most requests should have: the next one is one of them, as far as anybody knows, and free to begin so.
        newcomer = Counter(best.block_lengths).most_common(1)[0][0]
        reason = Reason.FASTEST if load.may_grow else Reason.MEMORY
        decision = Decision(chosen, reason, newcomer)
        if load.may_grow:
            decision = self._trial(load, best, decision) or self._probe(load, decision) or decision
        self._is_trying = decision.reason in (Reason.TIME_TRIAL, Reason.ACCEPT_PROBE)
        return decision

    def apply(self, rows: Sequence[AutoRow], decision: Decision | None) -> list[tuple[int, bool]]:
        """Give rows their lengths: those of a decision, or to new rows the last decision's length for them.

        Returns:
            Number of each changed row, and whether its block is resized in place.
        """
        if decision is None:
            wanted = [
                max(length for length in row.lengths if length <= self._newcomer) if row.is_new else row.target
                for row in rows
            ]
            reason = Reason.NEWCOMER
        else:
            wanted, reason = list(decision.block_lengths), decision.reason
            self._newcomer, self._rounds_left, self._since_decision = decision.newcomer, decision.rounds, 0
            self._is_trying = reason in (Reason.TIME_TRIAL, Reason.ACCEPT_PROBE)
        changed = []
        for number, (row, length) in enumerate(zip(rows, wanted, strict=True)):
            if row.is_new or decision is not None:
                row.reason = reason.code
            if length != row.target and row.is_settled:
                changed.append((number, row.retarget(length)))
        return changed

    def _offer(self, row: AutoRow) -> Offer:
        """What the row may decode with; rows of about the same factor share one."""
        step = round(math.log(row.frailty.factor) / _FACTOR_STEP)
        found = self._offers.get((row.lengths, step))
        if found is None:
            accepted = self.curve.accept_lengths(row.lengths, math.exp(step * _FACTOR_STEP))
            found = Offer(row.lengths, tuple(map(gain_of, row.lengths, accepted)))
            self._offers[row.lengths, step] = found
        return found

    def _seconds_of(self, load: Load, caution: float = CAUTION) -> SecondsOf:
        """Seconds of the load's rounds, what interrupts them included; each number of query tokens asked for once."""

        @cache
        def round_s(num_tokens: int) -> float:
            shape = RoundShape(load.num_rows, num_tokens, load.num_kv_tokens)
            return self.times.seconds(shape) * (1 + caution * self.times.doubt(shape))

        def seconds_of(num_tokens: int, gain: float) -> float:
            return round_s(num_tokens) + self.arrivals.interruption_s(gain)

        return seconds_of

    def _expect(self, load: Load, offers: Sequence[Offer]) -> None:
        """Rounds and rates with every row of the load at one length, or at its longest where that is shorter."""
        seconds_of = self._seconds_of(load, caution=0.0)
        round_s, tok_s = {}, {}
        for length in max((row.lengths for row in load.rows), key=max):
            lengths = [length if length in offer.block_lengths else offer.block_lengths[-1] for offer in offers]
            tok_s[length] = rate_of(lengths, offers, load.others, seconds_of)
            num_tokens = load.others.num_tokens + sum(lengths)
            round_s[length] = self.times.seconds(RoundShape(load.num_rows, num_tokens, load.num_kv_tokens))
        self.expectation = Expectation(load.num_rows, round_s, tok_s)

    def _uniform(self, load: Load, length: int) -> RoundShape:
        num_tokens = load.others.num_tokens + length * len(load.rows)
        return RoundShape(load.num_rows, num_tokens, load.num_kv_tokens)

    def _trial(self, load: Load, best: Assignment, decision: Decision) -> Decision | None:
        """All rows at a length whose rounds were not timed lately, if it may turn out the best."""
        self._since_trial += self._since_decision
        pause = min(TRIAL_EVERY, FIRST_TRIALS_EVERY * (1 + self._num_trials))
        expected = self.expectation
        if self._since_trial < pause or expected is None or not all(row.is_settled for row in load.rows):
            return None
        unknown = [
            length
            for length, rate in expected.tok_s.items()
            if rate >= TRIAL_PROMISE * best.tok_s
            and all(length in row.lengths for row in load.rows)
            and self.times.num_seen(self._uniform(load, length)) < TIMED_ENOUGH
        ]
        if not unknown:
            return None
        length = max(unknown, key=lambda length: expected.tok_s[length])
        self._since_trial, self._num_trials = 0, self._num_trials + 1
        rounds = ROUNDS_PER_BLOCK + TRIAL_ROUNDS
        return Decision((length,) * len(load.rows), Reason.TIME_TRIAL, decision.newcomer, rounds)

    def _probe(self, load: Load, decision: Decision) -> Decision | None:
        """One request drafts a block, where nothing was learnt about drafts for long."""
        self._since_probe += self._since_decision
        if self.curve.num_observations != self._seen_blocks:
            self._seen_blocks, self._since_probe = self.curve.num_observations, 0
        if self._since_probe < PROBE_EVERY:
            return None
        settled = [number for number, row in enumerate(load.rows) if row.is_settled and len(row.lengths) > 1]
        if not settled:
            return None
        # In turn: each request may be the one that has become easy to draft for.
        self._turn += 1
        self._since_probe = 0
        chosen = list(decision.block_lengths)
        number = settled[self._turn % len(settled)]
        chosen[number] = load.rows[number].lengths[1]
        return Decision(tuple(chosen), Reason.ACCEPT_PROBE, decision.newcomer, 2 * ROUNDS_PER_BLOCK)


def _narrowed(offer: Offer, row: AutoRow, *, may_grow: bool) -> Offer:
    """What is left of an offer: a row changes its length once at a time, and grows only where there is room."""
    if row.is_settled and may_grow:
        return offer
    kept: tuple[int, ...] = (row.target,)
    if row.is_settled:
        kept = tuple(length for length in offer.block_lengths if length <= row.target)
    return Offer(kept, tuple(offer.gain(length) for length in kept))
