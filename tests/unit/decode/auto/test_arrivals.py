"""How long requests stay, and what arrivals cost the batch."""

from __future__ import annotations

import pytest

from dlm_sglang.decode.auto.arrivals import Arrivals


def _after(num_rounds: int, num_rows: int, rounds_each: int, tokens_each: int) -> Arrivals:
    """Requests that each stay for so many rounds and win so many tokens, in a batch that is always full."""
    arrivals = Arrivals()
    for _ in range(num_rounds):
        arrivals.count_round(num_rows, num_rows // rounds_each)
        arrivals.count_tokens(num_rows // rounds_each * tokens_each)
    return arrivals


def test_requests_are_known_to_stay_as_long_as_they_do() -> None:
    assert _after(2000, num_rows=32, rounds_each=4, tokens_each=32).mean_rounds == pytest.approx(4, rel=0.05)
    assert _after(2000, num_rows=32, rounds_each=32, tokens_each=99).mean_rounds == pytest.approx(32, rel=0.05)


def test_a_batch_that_ends_a_request_in_every_round_is_interrupted_in_every_round() -> None:
    arrivals = _after(2000, num_rows=32, rounds_each=4, tokens_each=32)
    arrivals.observe_prefill(0.01)
    assert arrivals.interruption_s(gain=0) == 0
    assert arrivals.interruption_s(gain=256) == pytest.approx(0.01, rel=0.01)
    assert arrivals.interruption_s(gain=32) == pytest.approx(0.01 * (1 - 0.368), rel=0.05)
    # Few ends, few interruptions, twice as many with twice the tokens.
    assert arrivals.interruption_s(gain=1) == pytest.approx(2 * arrivals.interruption_s(gain=0.5), rel=0.05)


def test_prefills_of_long_prompts_and_idle_times_leave_the_floor_where_it_is() -> None:
    arrivals = Arrivals()
    for seconds in (60.0, *(0.01, 0.03, 0.012, 5.0) * 20):
        arrivals.observe_prefill(seconds)
    assert 0.009 < arrivals.floor_s < 0.014


def test_nothing_is_lost_before_a_prefill_was_seen() -> None:
    assert Arrivals().interruption_s(gain=100) == 0
