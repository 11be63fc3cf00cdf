"""`auto` and latency budgets on the real server: what a response tells, and that choices are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from dlm_sglang.bundled.tasks import held_out_prompts
from tests.e2e.asks import AUTO, AUTOREGRESSIVE, Ask, Policy, ask, ask_all, diffusion
from tests.e2e.metrics import scrape
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

LENGTHS = ["1", "8", "16", "32"]
REASONS = {"newcomer", "fastest", "accept_probe", "time_trial", "memory"}
MESSAGES = [messages for _, messages, _ in held_out_prompts(8)]


def chat(server: Server, **fields: object) -> httpx.Response:
    return server.post("/v1/chat/completions", {"messages": MESSAGES[0], "temperature": 0, "max_tokens": 48, **fields})


def test_a_long_answer_uses_blocks_and_says_which_and_why(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    one = Ask(prompt_ids=prompts[0], policy=AUTO, max_new_tokens=400, ignore_eos=True)
    answer = ask(each_server.url, one)
    assert not (wrong := oracle.mismatches([one], [answer])), "\n".join(wrong)
    stats = answer.stats
    told = stats["auto"]
    assert sum(told["blocks"].values()) == stats["num_blocks"]
    assert stats["num_denoise_forwards"] == sum(count for length, count in told["blocks"].items() if length != "1")
    assert set(told["blocks"]) <= set(LENGTHS)
    assert told["reason"] in REASONS
    assert told["requests"] == 1
    for name in ("tok_s", "round_ms"):
        assert list(told[name]) == LENGTHS
        assert min(told[name].values()) > 0
    assert all(1 < tokens <= int(length) for length, tokens in told["accept_length"].items())


def test_block_lengths_change_within_answers_and_the_tokens_stay(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    """Answers of different lengths, so that the load falls from 48 to 1 while they run."""
    asks = [
        Ask(
            prompt_ids=prompts[number],
            policy=AUTO,
            max_new_tokens=20 + 6 * number,
            ignore_eos=True,
            **({"temperature": 0.9, "seed": number} if number % 3 == 0 else {}),
        )
        for number in range(48)
    ]
    answers = ask_all(each_server.url, asks, concurrency=48)
    assert not (wrong := oracle.mismatches(asks, answers)), "\n".join(wrong)
    blocks = [answer.stats["auto"]["blocks"] for answer in answers]
    assert len({length for one in blocks for length in one}) >= 2
    assert any(len(one) >= 2 for one in blocks), "no answer changed its block length"


@pytest.mark.parametrize("longest", [2, 8])
def test_no_block_is_longer_than_the_request_allows(front_server: Server, longest: int) -> None:
    answer = chat(front_server, generation_mode="auto", block_length=longest).json()
    assert answer["dlm"]["generation_mode"] == "auto"
    assert {int(length) for length in answer["dlm"]["auto"]["blocks"]} <= {1, longest}


def test_choices_are_told_one_by_one_and_counted(front_server: Server) -> None:
    before = scrape(front_server)
    answer = chat(front_server, generation_mode="auto", n=2).json()
    choices = answer["dlm"]["choices"]
    assert all(choice["auto"]["reason"] in REASONS for choice in choices)
    after = scrape(front_server)
    for length in LENGTHS:
        key = ("dlm_auto_blocks_total", (("block_length", length),))
        assert after[key] - before[key] == sum(choice["auto"]["blocks"].get(length, 0) for choice in choices)
        assert after["dlm_auto_round_seconds", (("block_length", length),)] > 0


def within(one: Ask, budget_ms: int) -> Ask:
    """The same request with a latency budget."""
    return replace(one, policy=replace(one.policy, latency_budget_ms=budget_ms))


def took(answer: Any) -> Any:
    return answer["dlm"]["latency_budget"]


def test_a_budget_that_is_ample_changes_nothing(front_server: Server) -> None:
    fields = {"generation_mode": "diffusion", "block_length": 16, "confidence_threshold": 0.9}
    plain, given = chat(front_server, **fields).json(), chat(front_server, **fields, latency_budget_ms=600_000).json()
    assert given["choices"][0]["message"] == plain["choices"][0]["message"]
    assert "latency_budget" not in plain["dlm"]
    assert took(given)["is_met"] is True
    assert took(given)["loosened_blocks"] == 0
    assert took(given)["confidence_threshold"] == 0.9


@pytest.mark.parametrize("policy", [diffusion(16, 16, 1.0), diffusion(8, 8, None), diffusion(16, 16, 1.0, False)])
def test_a_budget_too_short_lowers_threshold_and_steps_to_the_bounds(
    each_server: Server, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    asks = [Ask(prompt_ids=prompts[number], policy=policy, max_new_tokens=96, ignore_eos=True) for number in range(4)]
    plain = ask_all(each_server.url, asks, concurrency=4)
    hurried = ask_all(each_server.url, [within(one, 1) for one in asks], concurrency=1)
    for answer, before in zip(hurried, plain, strict=True):
        told = answer.stats["latency_budget"]
        assert told["is_met"] is False
        assert told["max_denoising_steps"] == 2
        assert told["confidence_threshold"] in (0.5, None)
        assert told["loosened_blocks"] > 0
        assert answer.num_tokens == 96
        assert answer.stats["num_denoise_forwards"] < before.stats["num_denoise_forwards"]


def test_a_budget_in_between_is_met_by_giving_up_some(each_server: Server, prompts: list[tuple[int, ...]]) -> None:
    """The budget is a share of what the same answer took without one, measured just before."""
    one = Ask(prompt_ids=prompts[3], policy=diffusion(16, 16, 1.0), max_new_tokens=192, ignore_eos=True)
    told: dict[str, Any] = {}
    # A machine that others use too is slower at one time than at another: then the share was no share.
    for _ in range(8):
        ample = ask(each_server.url, within(one, 3_600_000)).stats
        tight = ask(each_server.url, within(one, int(0.6 * ample["latency_budget"]["took_ms"]))).stats
        told = tight["latency_budget"]
        if told["loosened_blocks"] > 0:
            assert tight["num_denoise_forwards"] < ample["num_denoise_forwards"]
            if told["is_met"]:
                return
    pytest.fail(f"no budget was met by giving up some: {told}")


@pytest.mark.parametrize("mode", ["autoregressive", "self_speculation", "auto"])
def test_a_budget_is_refused_where_nothing_can_be_given_up_for_it(front_server: Server, mode: str) -> None:
    response = chat(front_server, generation_mode=mode, latency_budget_ms=500)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == ("latency_budget_ms", "parameter-not-honoured")
    for part in (mode, "500", "diffusion", "settling for less"):
        assert part in error["message"]


def test_autoregressive_answers_tell_nothing_of_auto(each_server: Server, prompts: list[tuple[int, ...]]) -> None:
    answer = ask(each_server.url, Ask(prompt_ids=prompts[0], policy=AUTOREGRESSIVE, max_new_tokens=4))
    assert not {"auto", "latency_budget"} & set(answer.stats)
