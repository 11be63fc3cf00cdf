"""`stream_denoising` on the real server: the oracle's blocks step by step, in streams that are else as they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from transformers import PreTrainedTokenizerFast

from dlm_sglang.bundled.tasks import held_out_prompts
from tests.e2e.asks import Ask, async_client, diffusion, shuffled, speculation
from tests.e2e.blocks import BLOCKLESS, WATCHED, check_blocks, seen_all, with_blocks
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

MAX_TOKENS = 20
POLICIES = (
    diffusion(8, 4, None),
    diffusion(16, 16, 0.5),
    diffusion(16, 8, 0.9, seeded_blocks=False),
    speculation(8),
    speculation(8, draft_threshold=0.5, max_denoising_steps=4),
)
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode}-{policy.block_length}")
# Blocks whose order of filling two engines may see differently, because of a numerical tie.
MAX_TIE_SHARE = 0.03


def test_blocks_are_the_oracles_in_mixed_batches_and_change_no_answer(
    each_server: Server, oracle: Oracle, mixed_asks: list[Ask]
) -> None:
    """Every second request is watched, of all modes that have blocks; the others run among them."""
    asks = shuffled(mixed_asks, seed=33)[:80]
    is_watched = [number % 2 == 0 and one.policy.mode not in BLOCKLESS for number, one in enumerate(asks)]
    bodies = [with_blocks(one) if look else one.body(stream=True) for one, look in zip(asks, is_watched, strict=True)]
    streams = seen_all(each_server.url, bodies, concurrency=16)
    assert not (wrong := oracle.mismatches(asks, [stream.answer for stream in streams])), "\n".join(wrong)
    assert not any(stream.blocks for stream, look in zip(streams, is_watched, strict=True) if not look)
    looked = [(one, stream) for one, stream, look in zip(asks, streams, is_watched, strict=True) if look]
    same = [one for one, stream in looked if stream.answer.output_ids == oracle.result(one).token_ids]
    wrong_blocks = [one for one, stream in looked if not check_blocks(stream.blocks, one, oracle) and one in same]
    assert len(same) > 20
    assert len(wrong_blocks) <= MAX_TIE_SHARE * len(same), wrong_blocks
    each_server.wait_idle()


@each_policy
def test_sampled_blocks_are_the_oracles_too(
    server: Server, oracle: Oracle, prompts: list[tuple[int, ...]], policy: Any
) -> None:
    one = Ask(
        prompt_ids=prompts[3], policy=policy, max_new_tokens=MAX_TOKENS, temperature=0.8, seed=11, ignore_eos=True
    )
    (stream,) = seen_all(server.url, [with_blocks(one)], concurrency=1)
    assert stream.answer.output_ids == oracle.result(one).token_ids
    assert check_blocks(stream.blocks, one, oracle)
    assert stream.answer.stats["num_denoise_forwards"] - len(stream.blocks) in (0, 1)


def test_a_list_of_prompts_has_the_blocks_of_each(
    server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    asks = [Ask(prompt_ids=prompts[number], policy=POLICIES[0], max_new_tokens=MAX_TOKENS) for number in range(3)]
    bodies = [with_blocks(one) for one in asks]
    body = {
        "input_ids": [one["input_ids"] for one in bodies],
        "sampling_params": [one["sampling_params"] for one in bodies],
        "stream": True,
    }
    blocks: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                blocks[event["index"]] += event["meta_info"].get("dlm_denoising", [])
    for number, one in enumerate(asks):
        assert check_blocks(blocks[number], one, oracle)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def chat() -> Any:
    return held_out_prompts(1)[0][1]


def blocks_of(chunks: Sequence[Any], index: int = 0) -> list[dict[str, Any]]:
    return [
        chunk.model_extra["dlm_denoising"]
        for chunk in chunks
        if "dlm_denoising" in chunk.model_extra and chunk.choices[0].index == index
    ]


@each_policy
def test_the_official_client_reads_a_watched_chat_as_any_other(
    client: OpenAI,
    oracle: Oracle,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[tuple[int, ...]],
    chat: Any,
    policy: Any,
) -> None:
    one = Ask(prompt_ids=prompts[0], policy=policy, max_new_tokens=MAX_TOKENS)
    expected = oracle.result(one)
    settings: dict[str, Any] = {
        "model": "default",
        "messages": chat,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    watching = {**policy.fields(), **WATCHED}
    chunks = list(client.chat.completions.create(**settings, stream=True, extra_body=watching))
    text = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    # As clients read it that know nothing of blocks, and do not look whether there is a choice until usage comes.
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count(expected.finish_reason) == 1
    assert check_blocks(blocks_of(chunks), one, oracle)
    assert len({(chunk.id, chunk.model, chunk.object) for chunk in chunks}) == 1

    plain = list(client.chat.completions.create(**settings, stream=True, extra_body=policy.fields()))
    ordinary = [chunk for chunk in chunks if "dlm_denoising" not in chunk.model_extra]
    assert [chunk.choices[0].delta for chunk in ordinary[:-1]] == [chunk.choices[0].delta for chunk in plain[:-1]]

    with client.chat.completions.stream(**settings, extra_body=watching) as stream:
        stream.until_done()
        assert stream.current_completion_snapshot.choices[0].message.content == text


@each_policy
def test_the_official_client_reads_a_watched_completion_as_any_other(
    client: OpenAI, oracle: Oracle, tokenizer: PreTrainedTokenizerFast, prompts: list[tuple[int, ...]], policy: Any
) -> None:
    one = Ask(prompt_ids=prompts[1], policy=policy, max_new_tokens=MAX_TOKENS)
    expected = oracle.result(one)
    chunks = list(
        client.completions.create(
            model="default",
            prompt=list(one.prompt_ids),
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
            extra_body={**policy.fields(), **WATCHED},
        )
    )
    text = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert check_blocks(blocks_of(chunks), one, oracle)


def test_blocks_tell_which_choice_they_are_of(
    client: OpenAI, oracle: Oracle, prompts: list[tuple[int, ...]], chat: Any
) -> None:
    policy = POLICIES[0]
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=chat,
            max_tokens=MAX_TOKENS,
            temperature=0,
            n=3,
            stream=True,
            extra_body={**policy.fields(), **WATCHED},
        )
    )
    one = Ask(prompt_ids=prompts[0], policy=policy, max_new_tokens=MAX_TOKENS)
    ids: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for chunk in chunks:
        if not chunk.choices[0].finish_reason:
            ids[chunk.choices[0].index].add(chunk.id)
    for index in range(3):
        assert check_blocks(blocks_of(chunks, index), one, oracle)
        assert len(ids[index]) == 1, "a choice's blocks have the id of its other chunks"


def test_what_nobody_could_see_is_refused(client: OpenAI, chat: Any) -> None:
    for fields, stream in (({"generation_mode": "ar"}, True), ({}, False), ({"block_length": 8}, False)):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="default",
                messages=chat,
                max_tokens=4,
                # The overloads know True and False apart, and no flag.
                stream=stream,  # type: ignore[call-overload]
                extra_body={**fields, **WATCHED},
            )
        assert refused.value.param == "stream_denoising"
        assert refused.value.code == "parameter-not-honoured"


def test_streams_that_are_left_early_leave_nothing_behind(each_server: Server, prompts: list[tuple[int, ...]]) -> None:
    asks = [
        Ask(prompt_ids=prompt, policy=policy, max_new_tokens=200, ignore_eos=True)
        for prompt, policy in zip(prompts, POLICIES * 4, strict=False)
    ]

    async def leave(client: httpx.AsyncClient, one: Ask, after: int) -> None:
        async with client.stream("POST", "/generate", json=with_blocks(one)) as response:
            async for _ in response.aiter_lines():
                after -= 1
                if after < 0:
                    return

    async def run() -> None:
        async with async_client(each_server.url) as client:
            await asyncio.gather(*(leave(client, one, number % 13) for number, one in enumerate(asks)))

    asyncio.run(run())
    load = each_server.wait_idle()
    assert load["num_used_tokens"] == 0


def test_blocks_after_a_retraction_still_lead_to_the_answer(
    each_small_server: Server, small_oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    """A request that lost its place begins its block again; what was final stays so."""
    asks = [
        Ask(prompt_ids=prompt, policy=policy, max_new_tokens=90, ignore_eos=True)
        for prompt, policy in zip(prompts[:16], (POLICIES[0], POLICIES[2], POLICIES[3]) * 6, strict=False)
    ]
    streams = seen_all(each_small_server.url, [with_blocks(one) for one in asks], concurrency=len(asks))
    assert not (wrong := small_oracle.mismatches(asks, [stream.answer for stream in streams])), "\n".join(wrong)
    assert any(stream.answer.meta["num_retractions"] for stream in streams)
    for one, stream in zip(asks, streams, strict=True):
        check_blocks(stream.blocks, one, small_oracle)
        if one.policy.mode == "diffusion":
            output_ids = stream.answer.output_ids
            for block in stream.blocks:
                for position, token_id in zip(block["positions"], block["token_ids"], strict=True):
                    assert token_id is None or position >= len(output_ids) or output_ids[position] == token_id
    each_small_server.wait_idle()


def test_the_first_tokens_time_is_not_the_first_blocks(front_server: Server, prompts: list[tuple[int, ...]]) -> None:
    """One unseeded block of many steps: its first token comes with its last, near the end of the request."""

    def times() -> tuple[float, float, float]:
        found = dict.fromkeys(("count", "ttft", "e2e"), 0.0)
        names = {
            "sglang:time_to_first_token_seconds_count": "count",
            "sglang:time_to_first_token_seconds_sum": "ttft",
            "sglang:e2e_request_latency_seconds_sum": "e2e",
        }
        for family in text_string_to_metric_families(front_server.get("/metrics/").text):
            for sample in family.samples:
                if sample.name in names:
                    found[names[sample.name]] += sample.value
        return found["count"], found["ttft"], found["e2e"]

    one = Ask(prompt_ids=prompts[0], policy=diffusion(32, 32, None, seeded_blocks=False), max_new_tokens=32)
    one = replace(one, ignore_eos=True)
    before = times()
    (stream,) = seen_all(front_server.url, [with_blocks(one)], concurrency=1)
    count, first_s, whole_s = (now - then for now, then in zip(times(), before, strict=True))
    assert len(stream.blocks) == 31
    assert count == 1
    assert first_s > 0.7 * whole_s
