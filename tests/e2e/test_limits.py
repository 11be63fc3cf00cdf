"""Where an answer ends: stop tokens, stop strings, `max_tokens` and the context, all of them inside blocks."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from tests.e2e.asks import AUTOREGRESSIVE, Answer, Ask, Policy, ask_all, diffusion, speculation
from tests.e2e.conftest import SMALL_CONTEXT
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server

BLOCK_LENGTH = 8
POLICIES: tuple[Policy, ...] = (
    AUTOREGRESSIVE,
    speculation(BLOCK_LENGTH),
    speculation(BLOCK_LENGTH, draft_threshold=0.5, max_denoising_steps=4),
    diffusion(BLOCK_LENGTH, 8, 0.9),
    diffusion(BLOCK_LENGTH, 3, None),
    diffusion(BLOCK_LENGTH, 8, 0.5, seeded_blocks=False),
)
IDS = [f"{p.mode}{'' if p.seeded_blocks else '-unseeded'}-{p.max_denoising_steps}" for p in POLICIES]
FREE_TOKENS = 2 * BLOCK_LENGTH + 4
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=IDS)


def varied(prompt_ids: tuple[int, ...], policy: Policy) -> Ask:
    """A run that no stop ends, hot enough to hold many different tokens whatever the weights."""
    return Ask(
        prompt_ids=prompt_ids, policy=policy, max_new_tokens=FREE_TOKENS, temperature=2.5, seed=77, ignore_eos=True
    )


def check(oracle: Oracle, asks: list[Ask], answers: list[Answer]) -> None:
    """Tokens as the oracle's, usage as the tokens, and the end that the oracle found."""
    assert not (wrong := oracle.mismatches(asks, answers)), "\n".join(wrong)
    for one, answer in zip(asks, answers, strict=True):
        assert answer.num_tokens == len(answer.output_ids), one
        assert answer.meta["prompt_tokens"] == len(one.prompt_ids), one
        assert answer.finish_type == oracle.result(one).finish_reason, one


@each_policy
def test_stop_token_at_any_place_of_a_block_ends_the_answer_there(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    """As the seed, inside the block, at its last slot, as the bonus token, in the second block."""
    free = varied(prompts[3], policy)
    tokens = oracle.result(free).token_ids
    asks = [
        replace(free, stop_token_ids=(token_id,), ignore_eos=False)
        for place, token_id in enumerate(tokens)
        if token_id not in tokens[:place]
    ]
    assert len(asks) > BLOCK_LENGTH, "the free run repeats itself; make it hotter"
    answers = ask_all(each_server.url, asks, concurrency=8)
    check(oracle, asks, answers)
    for one, answer in zip(asks, answers, strict=True):
        ends = oracle.eos_ids | set(one.stop_token_ids)
        assert answer.finish_type == "length" or answer.output_ids[-1] in ends
        assert not ends & set(answer.output_ids[:-1])


@each_policy
def test_max_tokens_cuts_inside_a_block(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    limits = (1, 2, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 2 * BLOCK_LENGTH + 1)
    asks = [Ask(prompt_ids=prompts[4], policy=policy, max_new_tokens=limit, ignore_eos=True) for limit in limits]
    answers = ask_all(each_server.url, asks, concurrency=4)
    check(oracle, asks, answers)
    assert [answer.num_tokens for answer in answers] == list(limits)
    assert {answer.finish_type for answer in answers} == {"length"}


@each_policy
def test_stop_string_inside_a_block_cuts_text_stream_and_usage(
    each_server: Server,
    oracle: Oracle,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[tuple[int, ...]],
    policy: Policy,
) -> None:
    free = varied(prompts[5], policy)
    tokens = oracle.result(free).token_ids
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    stops = stop_strings(text)
    assert stops, f"no plain text to stop at in {text!r}"
    asks = [replace(free, stop=(stop,)) for stop in stops]
    for stream in (False, True):
        for one, answer in zip(asks, ask_all(each_server.url, asks, concurrency=4, stream=stream), strict=True):
            (stop,) = one.stop
            # Stop strings are searched in text that still shows special tokens.
            num_kept = next(
                count for count in range(1, len(tokens) + 1) if stop in str(tokenizer.decode(tokens[:count]))
            )
            assert answer.output_ids == tokens[:num_kept] or oracle.is_tie(free, answer.output_ids), (stop, stream)
            assert answer.text == text[: text.index(stop)], (stop, stream)
            assert answer.num_tokens == num_kept
            assert answer.finish_type == "stop"
            assert answer.meta["finish_reason"]["matched"] == stop


@each_policy
def test_stop_string_is_never_streamed(
    each_server: Server,
    oracle: Oracle,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[tuple[int, ...]],
    policy: Policy,
) -> None:
    free = varied(prompts[5], policy)
    text = str(tokenizer.decode(oracle.result(free).token_ids, skip_special_tokens=True))
    for stop in stop_strings(text)[-2:]:
        sampling = replace(free, stop=(stop,)).body()["sampling_params"]
        body = {"text": "x", "stream": True, "sampling_params": sampling, "input_ids": list(free.prompt_ids)}
        del body["text"]
        with httpx.stream("POST", f"{each_server.url}/generate", json=body, timeout=60) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        cut = text[: text.index(stop)]
        for event in events:
            assert cut.startswith(event["text"]), (stop, event)
        assert events[-1]["text"] == cut


@each_policy
def test_context_end_cuts_inside_a_block(
    each_small_server: Server, small_oracle: Oracle, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    """A block that would reach past the context is shorter; SGLang keeps the last position or two free."""
    long_ids = [token_id for prompt_ids in prompts for token_id in prompt_ids]
    asks: list[Ask] = []
    for room in (7, BLOCK_LENGTH, BLOCK_LENGTH + 1, 2 * BLOCK_LENGTH + 3):
        prompt_ids = tuple(long_ids[: SMALL_CONTEXT - room])
        asks.append(Ask(prompt_ids=prompt_ids, policy=policy, max_new_tokens=room, ignore_eos=True))
    answers = ask_all(each_small_server.url, asks, concurrency=2)
    limited = [replace(one, max_new_tokens=answer.num_tokens) for one, answer in zip(asks, answers, strict=True)]
    check(small_oracle, limited, answers)
    for one, answer in zip(asks, answers, strict=True):
        end = len(one.prompt_ids) + answer.num_tokens
        assert SMALL_CONTEXT - 2 <= end <= SMALL_CONTEXT, (one, answer.num_tokens)
        assert answer.finish_type == "length"


def test_prompt_longer_than_the_context_is_refused(each_small_server: Server, prompts: list[tuple[int, ...]]) -> None:
    long_ids = [token_id for prompt_ids in prompts for token_id in prompt_ids][: SMALL_CONTEXT + 5]
    response = each_small_server.post("/generate", Ask(prompt_ids=tuple(long_ids), policy=speculation(8)).body())
    assert response.status_code == 400
    assert "context" in response.text or "longer" in response.text


def test_prompt_of_one_token(each_server: Server, oracle: Oracle) -> None:
    asks = [
        Ask(prompt_ids=(token_id,), policy=policy, max_new_tokens=20, ignore_eos=True)
        for policy in POLICIES
        for token_id in (1, 300)
    ]
    check(oracle, asks, ask_all(each_server.url, asks, concurrency=6))


def test_mask_id_in_a_prompt_is_ordinary_text(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    mask = oracle.mask_token_id
    asks = [
        Ask(prompt_ids=prompt_ids, policy=policy, max_new_tokens=20, ignore_eos=True)
        for policy in POLICIES
        for prompt_ids in ((*prompts[6], mask, mask), (mask, *prompts[7], mask, 300), (mask,))
    ]
    answers = ask_all(each_server.url, asks, concurrency=6)
    check(oracle, asks, answers)
    assert all(mask not in answer.output_ids for answer in answers)


def stop_strings(text: str) -> list[str]:
    """A few short pieces of plain text, each where it first occurs, from the text's start to its end."""
    places = range(2, len(text) - 3, max(1, len(text) // 6))
    pieces = [text[place : place + 2] for place in places]
    return [piece for piece in dict.fromkeys(pieces) if piece.isascii() and piece.isprintable()]
