"""Penalties, biases, bans, thinking budgets, log-probabilities and grammars on the real server, in every mode."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dlm_sglang.decode.controls import Controls
from tests.e2e.asks import AUTOREGRESSIVE, Answer, Ask, ask, ask_all, diffusion, speculation
from tests.e2e.oracle import TIE_LOGIT_GAP, Oracle
from tests.e2e.server import Server
from tests.plainly import Plain, decode_plainly

EXACT = (AUTOREGRESSIVE, speculation(8), speculation(32), speculation(16, draft_threshold=0.5, max_denoising_steps=4))
DIFFUSIONS = (diffusion(16, 1, None), diffusion(16, 16, 0.9), diffusion(8, 4, None))
NUM_TOKENS = 40
# Each with what the client sends.
CONTROLS: dict[str, tuple[Controls, dict[str, Any]]] = {
    "frequency": (Controls(frequency_penalty=2.0), {"frequency_penalty": 2.0}),
    "presence": (Controls(presence_penalty=-2.0), {"presence_penalty": -2.0}),
    "repetition": (Controls(repetition_penalty=1.9), {"repetition_penalty": 1.9}),
    "bias": (Controls(logit_bias=((300, 9.0), (117, -20.0))), {"logit_bias": {"300": 9.0, "117": -20.0}}),
    "min tokens": (Controls(min_new_tokens=38), {"min_new_tokens": 38}),
    "all": (
        Controls(frequency_penalty=1.0, repetition_penalty=1.4, logit_bias=((117, -4.0),), min_new_tokens=30),
        {"frequency_penalty": 1.0, "repetition_penalty": 1.4, "logit_bias": {"117": -4.0}, "min_new_tokens": 30},
    ),
}


def is_plain(answer: Answer, plain: Plain) -> bool:
    """Whether the tokens are the plain loop's, up to the first choice between two that rounding may swap."""
    for ours, theirs, gap in zip(answer.output_ids, plain.token_ids, plain.gaps, strict=False):
        if ours != theirs:
            return gap < TIE_LOGIT_GAP
    return len(answer.output_ids) == len(plain.token_ids)


@pytest.fixture(scope="module")
def plain_answers(oracle: Oracle, prompts: list[tuple[int, ...]]) -> dict[str, Plain]:
    """What each of the controls must give, with log-probabilities."""
    answers = {}
    for number, (name, (controls, _)) in enumerate(CONTROLS.items()):
        own = replace(controls, banned_ids=tuple(oracle.eos_ids))
        answers[name] = decode_plainly(oracle.model, list(prompts[number]), own, oracle.eos_ids, NUM_TOKENS)
    return answers


def test_controls_give_what_a_plain_loop_gives_in_a_mixed_batch(
    each_server: Server, prompts: list[tuple[int, ...]], plain_answers: dict[str, Plain]
) -> None:
    asks, names = [], []
    for number, (name, (_, sent)) in enumerate(CONTROLS.items()):
        for policy in (*EXACT, *DIFFUSIONS):
            asks.append(
                Ask(
                    prompt_ids=prompts[number],
                    policy=policy,
                    max_new_tokens=NUM_TOKENS,
                    sampling=tuple(sent.items()),
                    native=(("return_logprob", True),) if policy.block_length != 32 else (),
                )
            )
            names.append(name)
    for one, name, answer in zip(asks, names, ask_all(each_server.url, asks, concurrency=16), strict=True):
        plain = plain_answers[name]
        if one.policy in EXACT:
            assert is_plain(answer, plain), (name, one.policy, answer.output_ids, plain.token_ids)
        if one.native:
            told = answer.meta["output_token_logprobs"]
            assert [token_id for _, token_id, _ in told] == answer.output_ids
            if answer.output_ids == plain.token_ids:
                assert [value for value, _, _ in told] == pytest.approx(plain.logprobs, abs=2e-3)
    each_server.wait_idle()


def test_log_probabilities_of_a_diffused_answer_are_the_causal_models(
    each_server: Server, oracle: Oracle, prompts: list[tuple[int, ...]]
) -> None:
    """They cost no accuracy: the answer is the one without them."""
    asks = [Ask(prompt_ids=prompts[number], policy=policy) for number, policy in enumerate(DIFFUSIONS)]
    native = (("return_logprob", True), ("top_logprobs_num", 3))
    with_logprobs = [replace(one, native=native) for one in asks]
    answers = ask_all(each_server.url, [*asks, *with_logprobs], concurrency=6)
    assert not oracle.mismatches(asks, answers[:3])
    for one, without, answer in zip(asks, answers[:3], answers[3:], strict=True):
        assert answer.output_ids == without.output_ids
        # Forced by its own tokens, the plain loop tells what the causal model thought of each.
        values = [value for value, _, _ in answer.meta["output_token_logprobs"]]
        for place in (0, len(values) // 2, len(values) - 1):
            prefix = [*one.prompt_ids, *answer.output_ids[:place]]
            token_id = answer.output_ids[place]
            forced = decode_plainly(oracle.model, prefix, Controls(logit_bias=((token_id, 1e6),)), (), 1)
            assert values[place] == pytest.approx(forced.logprobs[0], abs=2e-3)
        for (value, token_id, _), tops in zip(
            answer.meta["output_token_logprobs"], answer.meta["output_top_logprobs"], strict=True
        ):
            assert len(tops) == 3
            assert tops[0][0] >= value - 1e-4
            assert all(top[0] == pytest.approx(value, abs=1e-4) for top in tops if top[1] == token_id)


def test_a_thought_ends_where_its_budget_does(each_server: Server, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    thinking = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=True)
    ids = tuple(tokenizer(thinking, add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids("</think>")
    modes = (*EXACT, *DIFFUSIONS, diffusion(8, 8, 0.9, seeded_blocks=False))
    asks = [
        Ask(
            prompt_ids=ids,
            policy=policy,
            sampling=(("custom_params", {**policy.fields(), "max_thinking_tokens": budget}),),
        )
        for budget in (0, 3, 9)
        for policy in modes
    ]
    answers = ask_all(each_server.url, asks, concurrency=8)
    for number, budget in enumerate((0, 3, 9)):
        own = answers[number * len(modes) : (number + 1) * len(modes)]
        for answer in own:
            assert answer.output_ids[budget] == end
            assert end not in answer.output_ids[:budget]
        assert len({tuple(answer.output_ids) for answer in own[: len(EXACT)]}) == 1


GRAMMARS: tuple[tuple[dict[str, str], str], ...] = (
    ({"regex": "[0-9]{3}-[a-c]{2,6}x"}, "[0-9]{3}-[a-c]{2,6}x"),
    ({"ebnf": 'root ::= "yes" | "no" | "maybe " root'}, "(maybe )*(yes|no)"),
    ({"json_schema": json.dumps({"enum": ["left", "right"]})}, '"(left|right)"'),
)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_mode_keeps_to_a_grammar(each_server: Server, prompts: list[tuple[int, ...]], temperature: float) -> None:
    """In a batch with rows that have none; the exact modes give the same answer."""
    asks = [
        Ask(
            prompt_ids=prompts[number],
            policy=policy,
            temperature=temperature,
            seed=number,
            sampling=tuple(grammar.items()),
        )
        for number, (grammar, _) in enumerate(GRAMMARS)
        for policy in (*EXACT, *DIFFUSIONS)
    ]
    free = [Ask(prompt_ids=prompts[9], policy=policy) for policy in EXACT]
    answers = ask_all(each_server.url, [*asks, *free], concurrency=16)
    width = len(EXACT) + len(DIFFUSIONS)
    for number, (_, pattern) in enumerate(GRAMMARS):
        own = answers[number * width : (number + 1) * width]
        for answer in own:
            if answer.finish_type == "stop":
                assert re.fullmatch(pattern, answer.text), answer.text
        assert any(answer.finish_type == "stop" for answer in own)
        assert len({answer.text for answer in own[: len(EXACT)]}) == 1
    assert len({answer.text for answer in answers[len(asks) :]}) == 1
    each_server.wait_idle()


def test_controls_survive_retraction(each_small_server: Server, prompts: list[tuple[int, ...]]) -> None:
    """The same answers under a pool that is too small for all of them at once."""
    policies = (AUTOREGRESSIVE, speculation(8), diffusion(16, 16, 0.9), diffusion(8, 2, None))
    wanted: tuple[dict[str, Any], ...] = (
        {"frequency_penalty": 1.0, "ignore_eos": True},
        {"repetition_penalty": 1.5, "logit_bias": {"117": -3.0}, "ignore_eos": True},
        {"regex": "[a-z ]{60,}", "min_new_tokens": 0},
        {"presence_penalty": 0.5, "min_new_tokens": 100},
    )
    asks = [
        Ask(
            prompt_ids=prompts[number],
            policy=policies[number % 4],
            max_new_tokens=170,
            sampling=tuple(wanted[number // 4].items()),
            native=(("return_logprob", True),) if number % 3 == 0 else (),
        )
        for number in range(16)
    ]
    alone = [ask(each_small_server.url, one) for one in asks]
    together = ask_all(each_small_server.url, asks, concurrency=len(asks))
    for one, answer, expected in zip(asks, together, alone, strict=True):
        assert answer.output_ids == expected.output_ids, one
        if one.native:
            told, before = (reply.meta["output_token_logprobs"] for reply in (answer, expected))
            assert [value for value, _, _ in told] == pytest.approx([value for value, _, _ in before], abs=2e-3)
    assert any(answer.meta["num_retractions"] > 0 for answer in together)
    each_small_server.wait_idle()
