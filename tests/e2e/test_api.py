"""The OpenAI surface with the official client: every parameter, the report of what ran, and every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from dlm_sglang.bundled.tasks import held_out_prompts
from tests.e2e.asks import AUTOREGRESSIVE, Ask, Policy, diffusion, speculation
from tests.e2e.oracle import Oracle
from tests.e2e.server import Server, wait_for

MAX_TOKENS = 20
POLICIES: tuple[Policy, ...] = (
    AUTOREGRESSIVE,
    speculation(8),
    speculation(8, draft_threshold=0.5, max_denoising_steps=4),
    diffusion(8, 4, None),
    diffusion(8, 8, 0.5),
    diffusion(16, 16, 0.9, seeded_blocks=False),
)
each_policy = pytest.mark.parametrize(
    "policy",
    POLICIES,
    ids=[f"{p.mode}{'' if p.seeded_blocks else '-unseeded'}-{p.max_denoising_steps}" for p in POLICIES],
)
SEVERAL_FIELDS = {"generation_mode": "diffusion", "block_length": 8, "confidence_threshold": 0.9}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def chat() -> list[dict[str, str]]:
    return held_out_prompts(1)[0][1]


def asked(prompt_ids: tuple[int, ...], policy: Policy, **changes: Any) -> Ask:
    return Ask(prompt_ids=prompt_ids, policy=policy, max_new_tokens=MAX_TOKENS, **changes)


def check_report(report: dict[str, Any], one: Ask, oracle: Oracle) -> None:
    """The `dlm` object tells what the oracle counts for the same request."""
    expected = oracle.result(one)
    num_block_tokens = sum(expected.accept_lens)
    assert report["generation_mode"] == one.policy.mode
    assert report["num_denoise_forwards"] == expected.num_denoise_forwards
    assert report["num_commit_forwards"] == expected.num_commit_forwards
    assert report["num_forwards"] == report["num_denoise_forwards"] + report["num_commit_forwards"]
    assert report["num_blocks"] == expected.num_blocks
    assert report["tokens_per_forward"] == pytest.approx(num_block_tokens / max(expected.num_forwards, 1), abs=1e-3)
    assert report["mean_accept_length"] == pytest.approx(num_block_tokens / max(expected.num_blocks, 1), abs=1e-3)


@each_policy
def test_chat_answer_usage_and_report_are_the_oracles(
    client: OpenAI,
    oracle: Oracle,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[tuple[int, ...]],
    chat: Any,
    policy: Policy,
) -> None:
    one = asked(prompts[0], policy)
    expected = oracle.result(one)
    text = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    settings: dict[str, Any] = {
        "model": "default",
        "messages": chat,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "extra_body": policy.fields(),
    }
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.token_ids)
    assert whole.usage.prompt_tokens == len(one.prompt_ids)
    check_report(whole.model_extra["dlm"], one, oracle)  # type: ignore[index]

    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    reports = [chunk.model_extra["dlm"] for chunk in chunks if "dlm" in (chunk.model_extra or {})]
    assert len(reports) == 1
    check_report(reports[0], one, oracle)


@each_policy
def test_completion_of_token_ids_usage_and_report_are_the_oracles(
    client: OpenAI, oracle: Oracle, tokenizer: PreTrainedTokenizerFast, prompts: list[tuple[int, ...]], policy: Policy
) -> None:
    one = asked(prompts[1], policy)
    expected = oracle.result(one)
    text = tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    settings: dict[str, Any] = {
        "model": "default",
        "prompt": list(one.prompt_ids),
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "extra_body": policy.fields(),
    }
    whole = client.completions.create(**settings)
    assert whole.choices[0].text == text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage is not None and whole.usage.completion_tokens == len(expected.token_ids)
    check_report(whole.model_extra["dlm"], one, oracle)  # type: ignore[index]

    chunks = list(client.completions.create(**settings, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text
    reports = [chunk.model_extra["dlm"] for chunk in chunks if "dlm" in (chunk.model_extra or {})]
    assert len(reports) == 1
    check_report(reports[0], one, oracle)


@each_policy
def test_sampling_settings_and_seed_are_the_oracles(
    client: OpenAI,
    oracle: Oracle,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[tuple[int, ...]],
    chat: Any,
    policy: Policy,
) -> None:
    sampling = {"temperature": 1.2, "top_p": 0.9, "seed": 4711}
    extra = {"top_k": 12, "min_p": 0.02}
    answer = client.chat.completions.create(
        model="default",
        messages=chat,
        max_tokens=MAX_TOKENS,
        extra_body={**policy.fields(), **extra},
        **sampling,  # type: ignore[arg-type]
    )
    expected = oracle.result(asked(prompts[0], policy, **sampling, **extra))
    assert answer.choices[0].message.content == tokenizer.decode(expected.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("max_tokens", [5, MAX_TOKENS])
def test_several_choices_have_a_report_each_and_their_sums(
    client: OpenAI, oracle: Oracle, prompts: list[tuple[int, ...]], chat: Any, max_tokens: int
) -> None:
    """With 5 tokens the one block ends the request, so it has no commit forward."""
    policy = diffusion(8, 8, 0.5)
    answer = client.chat.completions.create(
        model="default", messages=chat, max_tokens=max_tokens, temperature=0, n=2, extra_body=policy.fields()
    )
    report = answer.model_extra["dlm"]  # type: ignore[index]
    one = replace(asked(prompts[0], policy), max_new_tokens=max_tokens)
    for choice in report["choices"]:
        check_report(choice, one, oracle)
    expected = oracle.result(one)
    assert report["num_forwards"] == 2 * expected.num_forwards
    assert report["num_blocks"] == 2 * expected.num_blocks
    # Two equal choices: the means are those of one.
    assert report["tokens_per_forward"] == pytest.approx(report["choices"][0]["tokens_per_forward"])
    assert report["mean_accept_length"] == pytest.approx(report["choices"][0]["mean_accept_length"])


def test_request_without_our_fields_is_served_in_the_default_mode(client: OpenAI, chat: Any) -> None:
    answer = client.chat.completions.create(model="default", messages=chat, max_tokens=4, temperature=0)
    assert answer.model_extra["dlm"]["generation_mode"] == "self_speculation"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "named", "code"),
    [
        ({"generation_mode": "parallel"}, "generation_mode", "mode-unknown"),
        ({"generation_mode": "fast"}, "generation_mode", "mode-unknown"),
        ({"generation_mode": 3}, "generation_mode", "parameter-type"),
        ({"block_length": 1}, "block_length", "parameter-out-of-range"),
        ({"block_length": 33}, "block_length", "parameter-out-of-range"),
        ({"block_length": 8.0}, "block_length", "parameter-type"),
        ({**SEVERAL_FIELDS, "max_denoising_steps": 0}, "max_denoising_steps", "parameter-out-of-range"),
        ({**SEVERAL_FIELDS, "max_denoising_steps": 9}, "max_denoising_steps", "parameter-out-of-range"),
        ({**SEVERAL_FIELDS, "confidence_threshold": 0}, "confidence_threshold", "parameter-out-of-range"),
        ({**SEVERAL_FIELDS, "confidence_threshold": 1.5}, "confidence_threshold", "parameter-out-of-range"),
        ({**SEVERAL_FIELDS, "confidence_threshold": "high"}, "confidence_threshold", "parameter-type"),
        ({**SEVERAL_FIELDS, "seeded_blocks": 1}, "seeded_blocks", "parameter-type"),
        ({"draft_threshold": -0.1}, "draft_threshold", "parameter-out-of-range"),
        ({**SEVERAL_FIELDS, "draft_threshold": 0.5}, "draft_threshold", "parameter-not-honoured"),
        ({"generation_mode": "ar", "block_length": 8}, "block_length", "parameter-not-honoured"),
        ({"max_denoising_steps": 4}, "max_denoising_steps", "parameter-not-honoured"),
        ({"confidence_threshold": 0.9}, "confidence_threshold", "parameter-not-honoured"),
        ({"seeded_blocks": False}, "seeded_blocks", "parameter-not-honoured"),
        ({"blocklength": 8}, "blocklength", "parameter-unknown"),
        ({"threshold": 0.9}, "threshold", "parameter-unknown"),
        ({"custom_params": {"dlm": {}}}, "custom_params.dlm", "parameter-reserved"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_wrong_parameter_is_a_400_that_names_it(
    client: OpenAI, chat: Any, fields: dict[str, Any], named: str, code: str, stream: bool, route: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        send(client, route, chat, fields, stream)
    check_error(refused.value, named, code)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"return_hidden_states": True}, "return_hidden_states"),
        ({"lora_path": "x"}, "lora_path"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"seeded_blocks": False, "generation_mode": "diffusion", "logprobs": True}, "logprobs"),
        ({"custom_params": {"thinking_budget": 3}}, "custom_params.thinking_budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_field_that_the_worker_cannot_honour_is_refused(
    client: OpenAI, chat: Any, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        send(client, "chat", chat, fields, stream=False)
    check_error(refused.value, named, "parameter-unsupported")


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "repetition_penalty": 1, "logit_bias": {}},
        {"logprobs": False, "response_format": {"type": "text"}, "min_tokens": 0},
        {"generation_mode": None, "block_length": None, "draft_threshold": None},
    ],
    ids=["penalties", "formats", "nulls"],
)
def test_field_whose_value_changes_nothing_is_served(client: OpenAI, chat: Any, fields: dict[str, Any]) -> None:
    answer = send(client, "chat", chat, fields, stream=False)
    assert answer.usage.completion_tokens >= 1


@pytest.mark.parametrize(
    "sent", [["json_schema"], "json_schema", {"type": "json_schema", "schema": {"properties": [1]}}]
)
def test_what_sglang_would_stumble_over_is_refused(server: Server, sent: object) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "Hi."}], "response_format": sent}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("response_format")


@pytest.mark.parametrize(("name", "value"), [("logit_bias", "300"), ("stop", [3]), ("temperature", "hot")])
def test_sampling_params_of_another_type_are_refused(server: Server, name: str, value: object) -> None:
    body = {"text": "Hi.", "sampling_params": {"max_new_tokens": 4, name: value}}
    response = server.post("/generate", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == f"sampling_params.{name}"


def test_custom_params_of_generate_are_checked_too(server: Server, prompts: list[tuple[int, ...]]) -> None:
    body = Ask(prompt_ids=prompts[0], policy=speculation(8)).body()
    body["sampling_params"]["custom_params"]["block_length"] = 64
    response = server.post("/generate", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "block_length"


def test_disconnect_in_mid_stream_aborts_the_request(server: Server, prompts: list[tuple[int, ...]]) -> None:
    server.wait_idle()
    body = Ask(prompt_ids=prompts[0], policy=AUTOREGRESSIVE, max_new_tokens=3000, ignore_eos=True).body(stream=True)
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as response:
        for number, line in enumerate(response.iter_lines()):
            if number > 4 and line.startswith("data: "):
                break
        assert server.load()["num_running_reqs"] <= 1
    # Far sooner than 3000 tokens take.
    wait_for(lambda: server.load()["num_running_reqs"] == 0, 30, lambda: "the request runs on without its client")
    server.wait_idle()


def send(client: OpenAI, route: str, chat: Any, fields: dict[str, Any], stream: bool) -> Any:
    settings: dict[str, Any] = {"model": "default", "max_tokens": 4, "extra_body": fields, "stream": stream}
    if route == "chat":
        return client.chat.completions.create(messages=chat, **settings)
    return client.completions.create(prompt="Sort 3, 1, 2.", **settings)


def check_error(error: openai.BadRequestError, named: str, code: str) -> None:
    """OpenAI's error object."""
    assert isinstance(error.body, dict)
    assert error.body["param"] == named
    assert error.body["code"] == code
    assert error.body["type"] == "invalid_request_error"
    assert named.split(".")[-1] in error.body["message"]
