"""Loads arrive in the pattern that was asked for, and every answer is read in full."""

from __future__ import annotations

import pytest

from dlm_sglang.measure.client import RequestRefused, ServerGone
from dlm_sglang.measure.drive import Pattern, drive
from tests.unit.measure.conftest import NUM_TOKENS, WORDS, FakeServer

BODY = {"messages": [{"role": "user", "content": "Hi"}], "generation_mode": "self_speculation"}


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_read_in_full(fake: FakeServer, stream: bool) -> None:
    (record,) = drive(fake.url, [BODY], Pattern(1), stream=stream).records
    assert (record.text, record.finish_reason) == ("".join(WORDS), "stop")
    assert (record.prompt_tokens, record.output_tokens) == (7, NUM_TOKENS)
    assert (record.num_blocks, record.num_forwards, record.num_block_tokens) == (2, 4, NUM_TOKENS)
    assert len(record.gaps_s) == (len(WORDS) - 1 if stream else 0)
    assert 0 < record.ttft_s <= record.latency_s
    assert "stream" not in BODY


def test_a_closed_loop_keeps_its_users_busy_and_answers_in_order(fake: FakeServer) -> None:
    fake.delay_s = 0.03
    bodies = [{**BODY, "max_tokens": number} for number in range(9)]
    run = drive(fake.url, bodies, Pattern(concurrency=3), stream=False)
    assert fake.most_running == 3
    assert len(run.records) == 9
    assert sorted(body["max_tokens"] for body in fake.bodies) == list(range(9))
    assert 3 * 0.03 <= run.elapsed_s < 9 * 0.03 + 1


def test_arrivals_do_not_wait_for_answers_and_repeat_with_their_seed(fake: FakeServer) -> None:
    fake.delay_s = 0.2
    gaps = []
    for _ in range(2):
        fake.arrivals.clear()
        run = drive(fake.url, [BODY] * 6, Pattern(rate_s=50), seed=3)
        gaps.append([round(record.sent_s, 1) for record in run.records])
    assert fake.most_running > 3
    assert gaps[0] == gaps[1]
    assert all(sent >= 0 for sent in gaps[0])


def test_a_refused_request_and_a_dead_server_are_told_apart(fake: FakeServer) -> None:
    fake.refused_mode = "self_speculation"
    with pytest.raises(RequestRefused, match="no self_speculation here"):
        drive(fake.url, [BODY] * 4, Pattern(2))
    fake.answers_until_death = 0
    with pytest.raises(ServerGone, match="stopped answering"):
        drive(fake.url, [BODY] * 4, Pattern(2))
    with pytest.raises(ServerGone):
        drive("http://127.0.0.1:9", [BODY], Pattern(1))
