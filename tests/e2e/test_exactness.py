"""Greedy, float32: the server's tokens are the oracle's, whatever else is in the batch or in the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.asks import AUTO, AUTOREGRESSIVE, MODES, SPECULATIONS, Ask, ask, ask_all, shuffled
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server


def test_alone_each_mode_gives_the_oracles_tokens(each_server: Server, oracle: Oracle, mixed_asks: list[Ask]) -> None:
    """One request of each mode on every prompt, one after another; every second one is streamed."""
    each_server.flush_cache()
    alone = list({(one.prompt_ids, one.policy.mode): one for one in mixed_asks}.values())
    assert {one.policy.mode for one in alone} == set(MODES)
    answers = [ask(each_server.url, one, stream=number % 2 == 1) for number, one in enumerate(alone)]
    assert not (wrong := oracle.mismatches(alone, answers)), "\n".join(wrong)


@pytest.mark.parametrize("concurrency", [8, 32])
def test_mixed_batch_gives_the_oracles_tokens_with_cold_and_warm_cache(
    each_server: Server, oracle: Oracle, mixed_asks: list[Ask], concurrency: int
) -> None:
    mixed = shuffled(mixed_asks, seed=concurrency)
    each_server.flush_cache()
    cold = ask_all(each_server.url, mixed, concurrency=concurrency)
    assert not (wrong := oracle.mismatches(mixed, cold)), "\n".join(["cold", *wrong])
    warm = ask_all(each_server.url, mixed, concurrency=concurrency, stream=True)
    assert all(answer.meta["cached_tokens"] > 0 for answer in warm)
    assert not (wrong := oracle.mismatches(mixed, warm)), "\n".join(["warm, streamed", *wrong])


def test_prompt_that_continues_an_answer_finds_it_in_the_cache_and_goes_on_exactly(
    each_server: Server, oracle: Oracle, mixed_asks: list[Ask]
) -> None:
    """What a block left in the cache is read again: it must be the causal KV of the tokens that were emitted."""
    first = [replace(one, max_new_tokens=21, ignore_eos=True) for one in shuffled(mixed_asks, seed=3)[:48]]
    each_server.flush_cache()
    answers = ask_all(each_server.url, first, concurrency=8)
    policies = [one.policy for one in shuffled(first, seed=4)]
    second = [
        Ask(prompt_ids=(*one.prompt_ids, *answer.output_ids, 7), policy=policy, max_new_tokens=16)
        for one, answer, policy in zip(first, answers, policies, strict=True)
    ]
    continued = ask_all(each_server.url, second, concurrency=8)
    for one, answer, again in zip(first, answers, continued, strict=True):
        # A diffusion answer of a single block is done before any commit, so nothing of it can be in the cache.
        if answer.stats["num_commit_forwards"] > 0:
            assert again.meta["cached_tokens"] > len(one.prompt_ids), one
    assert not (wrong := oracle.mismatches(second, continued)), "\n".join(wrong)


def test_greedy_self_speculation_equals_greedy_autoregressive(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    causal = [Ask(prompt_ids=prompt_ids, policy=AUTOREGRESSIVE) for prompt_ids in prompts]
    expected = ask_all(each_server.url, causal, concurrency=16)
    for policy in (*SPECULATIONS, AUTO):
        asks = [replace(one, policy=policy) for one in causal]
        answers = ask_all(each_server.url, asks, concurrency=16)
        differing = [
            (one, answer.output_ids, other.output_ids)
            for one, answer, other in zip(asks, answers, expected, strict=True)
            if answer.output_ids != other.output_ids and not oracle.is_tie(one, answer.output_ids)
        ]
        assert differing == []
