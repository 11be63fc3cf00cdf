"""When the controller decides, and what it tries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dlm_sglang.decode.auto.assign import Others
from dlm_sglang.decode.auto.controller import DECIDE_EVERY, AutoController, Decision, Load, Reason
from dlm_sglang.decode.auto.report import report_of
from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.auto.row import AutoRow, allowed_lengths


def _rows(count: int, longest: int = 32) -> list[AutoRow]:
    rows = [AutoRow(allowed_lengths(longest)) for _ in range(count)]
    for row in rows:
        row.restart()
    return rows


def _load(rows: Sequence[AutoRow], *, may_grow: bool = True) -> Load:
    return Load(rows, len(rows), Others(), 100 * len(rows), may_grow)


def _controller(free_tokens: float) -> AutoController:
    """One that has seen rounds which take a constant time up to so many query tokens, then in proportion."""
    controller = AutoController(32)
    for num_rows in (1, 2, 4, 8, 16, 32):
        for width in (1, 8, 16, 32):
            for _ in range(4):
                seconds = 0.01 * max(1.0, num_rows * width / free_tokens)
                controller.observe_round(RoundShape(num_rows, num_rows * width, 100 * num_rows), seconds)
    return controller


def _play(controller: AutoController, rows: Sequence[AutoRow], num_rounds: int, accept: int) -> list[Decision]:
    """Rounds of an unchanged batch in which every block wins `accept` tokens at most."""
    decisions = []
    drafted = [False] * len(rows)
    for _ in range(num_rounds):
        decision = controller.decide(_load(rows)) if controller.is_due(rows, has_changed=False) else None
        decisions += [decision] if decision else []
        controller.apply(rows, decision)
        for number, row in enumerate(rows):
            row.launch()
            length = row.target if row.current == 1 else row.current
            drafted[number] = length > 1 and not drafted[number]
            _, verified = row.processed(is_denoise=drafted[number])
            if verified > 1:
                controller.observe_block(row, verified, min(accept, verified))
    return decisions


def test_few_requests_get_long_blocks_and_many_short_ones() -> None:
    lengths = []
    for count in (1, 8, 32):
        controller, rows = _controller(free_tokens=128), _rows(count)
        decision = controller.decide(_load(rows))
        controller.apply(rows, decision)
        lengths.append(max(row.target for row in rows))
        assert {row.reason for row in rows} == {"fastest"}
    assert lengths[0] == 32
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 16


def test_where_every_round_is_followed_by_a_prefill_fewer_and_longer_ones_are_chosen() -> None:
    lengths = []
    for prefill_s in (None, 0.05):
        controller, rows = _controller(free_tokens=128), _rows(32)
        for _ in range(500):
            controller.arrivals.count_round(num_rows=32, num_new=8)
            controller.arrivals.count_tokens(8 * 32)
        if prefill_s is not None:
            controller.arrivals.observe_prefill(prefill_s)
        controller.apply(rows, controller.decide(_load(rows)))
        lengths.append(max(row.target for row in rows))
    assert lengths[1] > lengths[0]


def test_a_request_never_gets_a_longer_block_than_it_allows() -> None:
    controller = _controller(free_tokens=1e6)
    rows = [*_rows(1), *_rows(1, longest=8), *_rows(1, longest=3)]
    controller.apply(rows, controller.decide(_load(rows)))
    assert [row.target for row in rows] == [32, 8, 3]


def test_without_room_for_longer_blocks_none_grows() -> None:
    controller, rows = _controller(free_tokens=1e6), _rows(3)
    controller.apply(rows, controller.decide(_load(rows, may_grow=False)))
    assert [row.target for row in rows] == [1, 1, 1]
    assert {row.reason for row in rows} == {"memory"}


def test_decisions_come_with_new_requests_and_then_now_and_then() -> None:
    controller, rows = _controller(free_tokens=128), _rows(4)
    assert controller.is_due(rows, has_changed=True)
    controller.apply(rows, controller.decide(_load(rows)))
    for row in rows:
        row.launch()
    due = [controller.is_due(rows, has_changed=False) for _ in range(DECIDE_EVERY)]
    assert due == [False] * (DECIDE_EVERY - 1) + [True]


def test_a_newcomer_between_decisions_gets_the_length_that_fits_one_more() -> None:
    controller, rows = _controller(free_tokens=128), _rows(4)
    decision = controller.decide(_load(rows))
    controller.apply(rows, decision)
    for row in rows:
        row.launch()
    newcomer = _rows(1)[0]
    assert not controller.is_due([*rows, newcomer], has_changed=True)
    assert controller.apply([*rows, newcomer], None) == [(4, True)]
    assert newcomer.target == decision.newcomer > 1
    assert newcomer.reason == "newcomer"


def test_newcomers_get_a_length_of_their_own_whatever_the_others_allow() -> None:
    controller = _controller(free_tokens=1e6)
    short = _rows(3, longest=5)
    controller.apply(short, controller.decide(_load(short)))
    for row in short:
        row.launch()
    rows = [*short, *_rows(1), *_rows(1, longest=2)]
    controller.apply(rows, None)
    assert [row.target for row in rows] == [5, 5, 5, 1, 2]
    for row in rows:
        row.launch()
        row.launch()
    controller.apply(rows, controller.decide(_load(rows)))
    assert all(row.target in row.lengths for row in rows)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_every_length_is_one_of_the_rows_own(seed: int) -> None:
    """Random arrivals, ends, limits, memory, and times that make no sense: no error, no length that is not allowed."""
    rng, controller = random.Random(seed), AutoController(64)
    rows: list[AutoRow] = []
    for _ in range(1500):
        has_changed = False
        if rng.random() < 0.2 or not rows:
            rows, has_changed = rows + _rows(rng.choice([1, 1, 6]), longest=rng.choice([2, 3, 7, 8, 20, 32, 64])), True
        if rng.random() < 0.15:
            rows, has_changed = [row for row in rows if rng.random() < 0.7] or rows[:1], True
        load = Load(rows, len(rows) + 2, Others(20, 3.5), rng.randrange(10_000), rng.random() < 0.8)
        decision = controller.decide(load) if controller.is_due(rows, has_changed=has_changed) else None
        controller.apply(rows, decision)
        num_tokens = 20 + sum(row.launch() for row in rows)
        controller.observe_round(
            RoundShape(len(rows) + 2, num_tokens, load.num_kv_tokens), rng.choice([0.0, 1e-3, 1, 9])
        )
        for row in rows:
            assert row.target in row.lengths
            _, verified = row.processed(is_denoise=rng.random() < 0.5)
            if verified > 1:
                controller.observe_block(row, verified, rng.randint(0, verified))


def test_an_unchanged_batch_comes_to_rest() -> None:
    controller, rows = _controller(free_tokens=128), _rows(8)
    decisions = _play(controller, rows, 800, accept=6)
    last = [decision.block_lengths for decision in decisions[-8:] if decision.reason is Reason.FASTEST]
    assert len(set(last)) == 1


def test_where_drafts_are_worthless_every_request_ends_up_autoregressive_but_is_asked_again() -> None:
    controller, rows = _controller(free_tokens=8), _rows(8)
    decisions = _play(controller, rows, 600, accept=1)
    last = [decision for decision in decisions if decision.reason is Reason.FASTEST][-1]
    assert set(last.block_lengths) == {1}
    probes = [decision for decision in decisions if decision.reason is Reason.ACCEPT_PROBE]
    assert len(probes) >= 3
    for probe in probes:
        assert sorted(probe.block_lengths) == [1] * 7 + [8]
    assert len({probe.block_lengths.index(8) for probe in probes}) > 1, "it was always the same one"


def test_drafts_that_become_worth_it_are_found_by_asking() -> None:
    controller, rows = _controller(free_tokens=64), _rows(8)
    _play(controller, rows, 600, accept=1)
    assert {row.target for row in rows} <= {1, 8}
    _play(controller, rows, 3000, accept=32)
    assert min(row.target for row in rows) >= 8


def test_a_length_that_was_never_timed_is_tried() -> None:
    controller, rows = AutoController(32), _rows(8)
    for width in (1, 8):
        for _ in range(4):
            controller.observe_round(RoundShape(8, 8 * width, 800), 0.01)
    decisions = _play(controller, rows, 200, accept=6)
    trials = [decision for decision in decisions if decision.reason is Reason.TIME_TRIAL]
    assert {length for trial in trials for length in trial.block_lengths} & {16, 32}
    for trial in trials:
        assert len(set(trial.block_lengths)) == 1
        assert trial.rounds < DECIDE_EVERY


def test_ranks_that_only_hear_of_decisions_ask_for_them_in_the_same_rounds() -> None:
    """Only the first rank's controller learns and decides; the other one hears what it decided."""
    first, other = _controller(free_tokens=64), AutoController(32)
    rows, mirrored = _rows(6), _rows(6)
    for number in range(400):
        has_changed = number % 37 == 0
        is_due = first.is_due(rows, has_changed=has_changed)
        assert other.is_due(mirrored, has_changed=has_changed) is is_due
        decision = first.decide(_load(rows)) if is_due else None
        heard = None if decision is None else replace(decision)
        assert first.apply(rows, decision) == other.apply(mirrored, heard)
        assert [row.launch() for row in rows] == [row.launch() for row in mirrored]
        for row in (*rows, *mirrored):
            row.processed(is_denoise=number % 2 == 0)


@pytest.mark.parametrize("count", [1, 5])
def test_the_report_gives_the_choice_its_reason_and_the_numbers_behind_it(count: int) -> None:
    controller, rows = _controller(free_tokens=128), _rows(count)
    _play(controller, rows, 40, accept=6)
    report = report_of(rows[0], controller)
    blocks, tok_s = report["blocks"], report["tok_s"]
    assert isinstance(blocks, dict)
    assert isinstance(tok_s, dict)
    assert sum(blocks.values()) > 0
    assert report["reason"] in {reason.code for reason in Reason}
    assert report["requests"] == count
    assert list(tok_s) == ["1", "8", "16", "32"]
    assert set(report) == {"blocks", "reason", "requests", "tok_s", "round_ms", "accept_length"}
