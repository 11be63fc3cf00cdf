"""Greedy, float32: the server's tokens are the oracle's, whatever else is in the batch or in the cache."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest

from tests.e2e.asks import AUTOREGRESSIVE, DIFFUSIONS, SPECULATIONS, Ask, ask, ask_all, shuffled
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

DIFFUSIONS_PER_PROMPT = 4


@pytest.fixture(scope="module")
def asks(prompts: list[tuple[int, ...]]) -> list[Ask]:
    """Every prompt autoregressively, by self-speculation and by several diffusion policies; all policies occur."""
    speculations, diffusions = cycle(SPECULATIONS), cycle(DIFFUSIONS)
    made: list[Ask] = []
    for number, prompt_ids in enumerate(prompts):
        policies = [AUTOREGRESSIVE, next(speculations)]
        policies += [next(diffusions) for _ in range(DIFFUSIONS_PER_PROMPT)]
        # Past the end of the answer the text is odd, which is where decoding differs most.
        limits = {"max_new_tokens": (24, 31, 48)[number % 3], "ignore_eos": number % 2 == 1}
        made += [Ask(prompt_ids=prompt_ids, policy=policy, **limits) for policy in policies]
    assert {one.policy for one in made} == {AUTOREGRESSIVE, *SPECULATIONS, *DIFFUSIONS}
    return made


def one_of_each_mode(asks: list[Ask], number: int) -> list[Ask]:
    """Three requests on one prompt."""
    start = number * (2 + DIFFUSIONS_PER_PROMPT)
    return asks[start : start + 3]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_alone_each_mode_gives_the_oracles_tokens(
    server: Server, oracle: Oracle, asks: list[Ask], prompts: list[tuple[int, ...]], stream: bool
) -> None:
    server.flush_cache()
    alone = [one for number in range(len(prompts)) for one in one_of_each_mode(asks, number)]
    answers = [ask(server.url, one, stream=stream) for one in alone]
    assert not (wrong := oracle.mismatches(alone, answers)), "\n".join(wrong)


@pytest.mark.parametrize("concurrency", [8, 32])
def test_mixed_batch_gives_the_oracles_tokens_with_cold_and_warm_cache(
    server: Server, oracle: Oracle, asks: list[Ask], concurrency: int
) -> None:
    mixed = shuffled(asks, seed=concurrency)
    server.flush_cache()
    cold = ask_all(server.url, mixed, concurrency=concurrency)
    assert not (wrong := oracle.mismatches(mixed, cold)), "\n".join(["cold", *wrong])
    warm = ask_all(server.url, mixed, concurrency=concurrency, stream=True)
    assert sum(answer.meta["cached_tokens"] for answer in warm) > sum(len(one.prompt_ids) - 1 for one in mixed) * 0.9
    assert not (wrong := oracle.mismatches(mixed, warm)), "\n".join(["warm, streamed", *wrong])


def test_prompt_that_continues_an_answer_finds_it_in_the_cache_and_goes_on_exactly(
    server: Server, oracle: Oracle, asks: list[Ask]
) -> None:
    """What a block left in the cache is read again: it must be the causal KV of the tokens that were emitted."""
    first = [replace(one, max_new_tokens=21, ignore_eos=True) for one in shuffled(asks, seed=3)[:48]]
    server.flush_cache()
    answers = ask_all(server.url, first, concurrency=8)
    turned = zip(first, answers, shuffled(first, seed=4), strict=True)
    second = [
        Ask(prompt_ids=(*one.prompt_ids, *answer.output_ids, 7), policy=other.policy, max_new_tokens=16)
        for one, answer, other in turned
    ]
    continued = ask_all(server.url, second, concurrency=8)
    hits = [answer.meta["cached_tokens"] - len(one.prompt_ids) for one, answer in zip(first, continued, strict=True)]
    assert sum(hit > 0 for hit in hits) > len(hits) * 0.9, f"cached tokens past the first prompts: {hits}"
    assert not (wrong := oracle.mismatches(second, continued)), "\n".join(wrong)


def test_greedy_self_speculation_equals_greedy_autoregressive(
    server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    causal = [Ask(prompt_ids=prompt_ids, policy=AUTOREGRESSIVE) for prompt_ids in prompts]
    expected = ask_all(server.url, causal, concurrency=16)
    for policy in SPECULATIONS:
        asks = [replace(one, policy=policy) for one in causal]
        answers = ask_all(server.url, asks, concurrency=16)
        differing = [
            (one, answer.output_ids, other.output_ids)
            for one, answer, other in zip(asks, answers, expected, strict=True)
            if answer.output_ids != other.output_ids and not oracle.is_tie(one, answer.output_ids)
        ]
        assert differing == []
