"""Each cell of the table of OpenAI's fields by mode: chat with the official client, completions with plain HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from dlm_sglang.api.fields import CHAT, OPENAI_FIELDS, Cell, OpenAIField, cell
from dlm_sglang.param_table import GenerationMode
from tests.e2e.server import Server

QUESTION = "Extract JSON: In Vienna lives Ben, aged 74."
# What the chat template makes of the question, so that both routes decode the same.
PROMPT = (
    f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think></think>"
)
HOT = {"temperature": 4.0, "max_tokens": 16}
CELLS = [
    pytest.param(row, route, mode, id=f"{row.title}-{route.removeprefix('/v1/')}-{mode}")
    for row in OPENAI_FIELDS
    for route in row.examples
    for mode in GenerationMode
]


@dataclass
class Asker:
    """Asks the same question on one route in one mode."""

    server: Server
    client: OpenAI
    route: str
    mode: str
    tokenizer: PreTrainedTokenizerFast
    example: dict[str, Any] = field(default_factory=dict)

    def body(self, **fields: Any) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": QUESTION}]} if self.route == CHAT else {"prompt": PROMPT}
        return {"model": "nld", "max_tokens": 32, "temperature": 0, "generation_mode": self.mode, **prompt, **fields}

    def answer(self, **fields: Any) -> dict[str, Any]:
        """The whole answer; the official client for chat, plain HTTP for completions."""
        body = self.body(**fields)
        if self.route == CHAT:
            known = {name: body.pop(name) for name in ("model", "messages")}
            return self.client.chat.completions.create(**known, extra_body=body).model_dump()
        response = self.server.post(self.route, body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def text(self, **fields: Any) -> str:
        return text_of(self.answer(**fields)["choices"][0])

    def events(self, **fields: Any) -> list[dict[str, Any]]:
        """A streamed answer's events, its end left out."""
        response = self.server.post(self.route, self.body(stream=True, **fields))
        *lines, done = [line for line in response.text.split("\n\n") if line]
        assert done == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def works_temperature(ask: Asker) -> None:
    assert ask.text() == ask.text()
    assert len({ask.text(**HOT, seed=seed) for seed in range(6)}) > 1


def chooses_the_best(ask: Asker) -> None:
    """The narrowest choice leaves one token: the seed no longer matters."""
    (name,) = ask.example
    narrow = {"top_p": 1e-6, "top_k": 1, "min_p": 1.0}[name]
    assert len({ask.text(**HOT, seed=seed, **{name: narrow}) for seed in (1, 2)}) == 1
    assert ask.answer(**HOT, **ask.example)["usage"]["completion_tokens"] > 0


def works_seed(ask: Asker) -> None:
    texts = [ask.text(**HOT, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def works_n(ask: Asker) -> None:
    answer = ask.answer(n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len({text_of(choice) for choice in answer["choices"]}) == 1
    assert len(answer["dlm"]["choices"]) == 2


def changes_the_answer(ask: Asker) -> None:
    assert ask.text(**ask.example) != ask.text()


def penalises(ask: Asker) -> None:
    """A model this sure of its answer has to be made to doubt before a penalty tips the scales."""
    hot = {**HOT, "max_tokens": 48, "ignore_eos": True}
    assert any(ask.text(**hot, seed=seed) != ask.text(**hot, seed=seed, **ask.example) for seed in (1, 2))


def works_stop(ask: Asker) -> None:
    whole = ask.text()
    stop = whole[5:8]
    choice = ask.answer(stop=["zzz", stop])["choices"][0]
    assert text_of(choice) == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def works_stop_token_ids(ask: Asker) -> None:
    whole = ask.text()
    ids = ask.tokenizer(whole, add_special_tokens=False)["input_ids"]
    place = next(number for number in range(3, len(ids)) if ids[number] not in ids[:number])
    answer = ask.answer(stop_token_ids=[ids[place]])
    assert whole.startswith(text_of(answer["choices"][0]))
    assert answer["usage"]["completion_tokens"] == place + 1
    assert answer["choices"][0]["finish_reason"] == "stop"


def works_logprobs(ask: Asker) -> None:
    answer = ask.answer(**ask.example)
    told = answer["choices"][0]["logprobs"]
    values = [one["logprob"] for one in told["content"]] if ask.route == CHAT else told["token_logprobs"]
    assert len(values) == answer["usage"]["completion_tokens"]
    assert all(value <= 0 for value in values)
    if "top_logprobs" in ask.example:
        assert all(len(one["top_logprobs"]) == 2 for one in told["content"])


def is_json(ask: Asker) -> None:
    told = json.loads(ask.text(**ask.example))
    assert isinstance(told, dict)
    if ask.example["response_format"]["type"] == "json_schema":
        assert isinstance(told["age"], int)


def works_regex(ask: Asker) -> None:
    assert re.fullmatch("[0-9]{3}", ask.text(**ask.example))


def works_ebnf(ask: Asker) -> None:
    assert ask.text(**ask.example) in ("yes", "no")


def is_served(ask: Asker) -> None:
    """The bundled model's template shows no tools: it answers as without."""
    choice = ask.answer(**ask.example)["choices"][0]
    assert text_of(choice) == ask.text()
    assert not choice["message"]["tool_calls"]


def calls_a_tool(ask: Asker) -> None:
    """With the arguments' free white space banned, in which a model this small would lose itself."""
    texts = {token_id: ask.tokenizer.decode([token_id]) for token_id in range(len(ask.tokenizer))}
    spaces = {str(token_id): -100 for token_id, text in texts.items() if text.isspace() and text != "\n"}
    (call,) = ask.answer(**ask.example, max_tokens=64, logit_bias=spaces)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert set(json.loads(call["function"]["arguments"])) == {"a", "b"}


def works_reasoning(ask: Asker) -> None:
    message = ask.answer(**ask.example, max_tokens=80)["choices"][0]["message"]
    assert message["reasoning_content"].strip()
    assert message["content"].strip()
    assert "think>" not in message["reasoning_content"] + message["content"]
    deltas = [event["choices"][0]["delta"] for event in ask.events(**ask.example, max_tokens=80)]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]


def works_stream(ask: Asker) -> None:
    events = ask.events()
    parts = [event["choices"][0] for event in events]
    told = "".join((part["delta"].get("content") or "") if ask.route == CHAT else part["text"] for part in parts)
    assert told == ask.text()
    assert events[-1]["dlm"]["generation_mode"] == ask.mode


def works_stream_options(ask: Asker) -> None:
    last = ask.events(stream_options={"include_usage": True})[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == ask.answer()["usage"]["completion_tokens"]


def works_max_tokens(ask: Asker) -> None:
    (name,) = ask.example
    answer = ask.answer(**{"max_tokens": None if name == "max_completion_tokens" else 5, name: 5})
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


def works_min_tokens(ask: Asker) -> None:
    assert ask.answer(min_tokens=30)["usage"]["completion_tokens"] >= 30


def works_ignore_eos(ask: Asker) -> None:
    answer = ask.answer(ignore_eos=True, max_tokens=60)
    assert answer["usage"]["completion_tokens"] == 60
    assert answer["choices"][0]["finish_reason"] == "length"


def works_echo(ask: Asker) -> None:
    assert ask.text(echo=True) == PROMPT + ask.text()


def fills_a_gap(ask: Asker) -> None:
    """The model sees what stands behind the gap."""
    gap = {"max_tokens": 6, "block_length": 16, "prompt": "Extract JSON: In Vienna lives Ben, aged 7"}
    assert len({ask.text(**gap, suffix=suffix) for suffix in (".", '", "city": "Oslo"}', " plus 5 is 12.", ", 8")}) > 1
    assert ask.answer(**gap, suffix=" x")["usage"]["completion_tokens"] <= 6


CHECKS: dict[str, Callable[[Asker], None]] = {
    "temperature": works_temperature,
    "top_p": chooses_the_best,
    "top_k": chooses_the_best,
    "min_p": chooses_the_best,
    "seed": works_seed,
    "n": works_n,
    "presence_penalty": penalises,
    "frequency_penalty": penalises,
    "repetition_penalty": penalises,
    "logit_bias": changes_the_answer,
    "stop": works_stop,
    "stop_token_ids": works_stop_token_ids,
    "logprobs": works_logprobs,
    "logprobs (number)": works_logprobs,
    "top_logprobs": works_logprobs,
    "response_format json_object": is_json,
    "response_format json_schema": is_json,
    "regex": works_regex,
    "ebnf": works_ebnf,
    "tools": is_served,
    "tools, strict": is_served,
    "tool_choice auto": is_served,
    "tool_choice required": calls_a_tool,
    "reasoning content": works_reasoning,
    "stream": works_stream,
    "stream_options": works_stream_options,
    "max_tokens": works_max_tokens,
    "max_completion_tokens": works_max_tokens,
    "min_tokens": works_min_tokens,
    "ignore_eos": works_ignore_eos,
    "echo": works_echo,
    "suffix": fills_a_gap,
}


@pytest.fixture(scope="module")
def client(front_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{front_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("row", "route", "mode"), CELLS)
def test_cell(
    front_server: Server,
    client: OpenAI,
    tokenizer: PreTrainedTokenizerFast,
    row: OpenAIField,
    route: str,
    mode: GenerationMode,
) -> None:
    ask = Asker(front_server, client, route, mode.value, tokenizer, dict(row.examples[route]))
    expected = cell(row, route, mode)
    if expected is Cell.REFUSED:
        response = front_server.post(route, ask.body(**ask.example))
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] in ask.example
        assert error["code"] == "parameter-unsupported"
    elif expected is Cell.IGNORED:
        assert ask.text(**ask.example) == ask.text()
    else:
        CHECKS[row.title](ask)


def test_the_schema_of_the_server_tells_of_our_fields(front_server: Server) -> None:
    schemas = front_server.get("/openapi.json").json()["components"]["schemas"]
    for body in ("ChatCompletionRequest", "CompletionRequest"):
        properties = schemas[body]["properties"]
        assert properties["generation_mode"]["enum"][0] == "autoregressive"
        assert properties["block_length"]["minimum"] == 2
