"""What each OpenAI field does in each mode: the table behind `docs/fields.md` and its end-to-end tests.

Whether a field is refused stands in `unsupported.py` alone: each cell is found by asking it. To turn a cell from
refused to works, change that row's `refused_in`; the page and the tests follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dlm_sglang.api.unsupported import Surface, refuse_unsupported
from dlm_sglang.errors import RequestError
from dlm_sglang.param_table import GenerationMode

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Cell(StrEnum):
    """What becomes of a field in a mode."""

    WORKS = "works"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True)
class OpenAIField:
    """One row of the table.

    Attributes:
        name: the field, as a request has it.
        examples: by route, the fields of a request that uses it.
        meaning: what it does, where that is not OpenAI's own words.
        label: the row's name, where one field has several rows.
        is_ignored: OpenAI defines it as something that changes no answer.
    """

    name: str
    examples: Mapping[str, Mapping[str, object]]
    meaning: str
    label: str = ""
    is_ignored: bool = False

    @property
    def title(self) -> str:
        """The row's name."""
        return self.label or self.name


def _row(
    name: str, value: object, meaning: str, routes: str = "both", label: str = "", **others: object
) -> OpenAIField:
    fields = {name: value, **others}
    wanted = {"chat": (CHAT,), "completions": (COMPLETIONS,), "both": (CHAT, COMPLETIONS)}[routes]
    return OpenAIField(name, dict.fromkeys(wanted, fields), meaning, label)


_SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["age"],
    "additionalProperties": False,
}
_DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
_ARGUMENTS = {
    "type": "object",
    "properties": {"a": _DIGIT, "b": _DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "add", "description": "Add", "parameters": _ARGUMENTS}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_STRICT_TOOLS = [{"type": "function", "function": {**_FUNCTION, "strict": True}}]
_JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}

OPENAI_FIELDS: tuple[OpenAIField, ...] = (
    _row("temperature", 1.5, "0 is greedy"),
    _row("top_p", 0.9, "as in OpenAI's API"),
    _row("top_k", 5, "the most probable tokens to choose from; -1 is all"),
    _row("min_p", 0.05, "smallest probability, as a share of the most probable token's"),
    _row("seed", 7, "the same seed and parameters give the same answer, whatever else the server does"),
    _row("n", 2, "1..128 choices; the `dlm` object sums them and lists each"),
    _row("presence_penalty", 1.5, "as in OpenAI's API"),
    _row("frequency_penalty", 1.5, "as in OpenAI's API"),
    _row("repetition_penalty", 1.5, "above 1 makes tokens of prompt and answer less probable"),
    _row("logit_bias", {"300": 100}, "by token id"),
    _row("stop", ["zzz"], "up to the string, anywhere in a block"),
    _row("stop_token_ids", [299], "up to the token, anywhere in a block"),
    _row("logprobs", True, "log-probabilities of the answer's tokens", "chat"),
    OpenAIField(
        "logprobs", {COMPLETIONS: {"logprobs": 1}}, "log-probabilities of the answer's tokens", "logprobs (number)"
    ),
    _row("top_logprobs", 2, "the most probable alternatives", "chat", logprobs=True),
    _row("response_format", {"type": "json_object"}, "an answer that is JSON", label="response_format json_object"),
    _row("response_format", _JSON_SCHEMA, "an answer of that schema", label="response_format json_schema"),
    _row("regex", "[0-9]{3}", "an answer that matches"),
    _row("ebnf", 'root ::= "yes" | "no"', "an answer of that grammar"),
    _row("tools", _TOOLS, "needs `--tool-call-parser`; the chat template has to show them to the model", "chat"),
    _row("tools", _STRICT_TOOLS, "calls that follow the schema for certain", "chat", "tools, strict"),
    _row("tool_choice", "auto", "the model decides; `none` too", "chat", "tool_choice auto", tools=_TOOLS),
    _row(
        "tool_choice",
        "required",
        "a call for certain; a named function too; its arguments follow the schema where the function is strict",
        "chat",
        "tool_choice required",
        tools=_STRICT_TOOLS,
        parallel_tool_calls=False,
    ),
    _row(
        "chat_template_kwargs",
        {"enable_thinking": True},
        "thoughts apart from the answer, as `reasoning_content`; needs `--reasoning-parser`",
        "chat",
        "reasoning content",
    ),
    _row("stream", True, "an event per block of tokens that was committed"),
    _row("stream_options", {"include_usage": True}, "as in OpenAI's API", stream=True),
    _row("max_tokens", 5, "cuts inside a block; what is cut is not billed"),
    _row("max_completion_tokens", 5, "as `max_tokens`", "chat"),
    _row("min_tokens", 30, "no end before"),
    _row("ignore_eos", True, "on to `max_tokens`"),
    _row("echo", True, "the prompt before the answer", "completions"),
    _row(
        "suffix",
        " end",
        "text behind a gap of `max_tokens`; see [infilling](infilling.md)",
        "completions",
        max_tokens=8,
    ),
    _row("best_of", 2, "choose the best of several answers", "completions"),
    _row("functions", [_FUNCTION], "OpenAI's old form of `tools`", "chat"),
    OpenAIField("user", {route: {"user": "somebody"} for route in (CHAT, COMPLETIONS)}, "", is_ignored=True),
)


def cell(field: OpenAIField, route: str, mode: GenerationMode) -> Cell | None:
    """What becomes of the field on a route in a mode, or None where the route has no such field."""
    if route not in field.examples:
        return None
    try:
        refuse_unsupported(field.examples[route], Surface.OPENAI, {mode})
    except RequestError:
        return Cell.REFUSED
    return Cell.IGNORED if field.is_ignored else Cell.WORKS


_PAGE = """\
<!-- Generated by `dlm-sglang params --fields`; a test fails when it is stale. -->
# OpenAI's fields by mode

Beside [our own fields](parameters.md). "works": the meaning that the field has with any model on SGLang. "refused":
status 400 with the field's name and what to send instead, unless the value changes nothing. "ignored": by the field's
own definition. Every cell is tested against the real server.

{table}

Fields that are not listed are SGLang's and pass unchanged.

## What the fields mean where several tokens are decided at once

- **Penalties, `logit_bias`, `min_tokens`** apply to every choice, drafts included. A causal choice counts the
  answer before it, the drafts of its own block too, so autoregressive mode and self-speculation give the same
  answer. A position that diffusion fills counts the answer before its block and what is filled before it in the
  block; positions that are filled in the same step do not see each other.
- **`logprobs`** are those of the causal forward that commits a token, before temperature, penalties, biases and
  grammars: what an autoregressive server would have thought of the answer. They change no answer. A diffusion
  request that asks for them has its last block committed by a causal forward too, which it would otherwise save.
- **Grammars** (`response_format`, `regex`, `ebnf`, forced and strict tools) always hold. Causal choices are masked,
  so autoregressive mode and self-speculation give the same answer; drafts follow the grammar token by token. In
  diffusion a block is committed as far as the grammar accepts it, then the causal forward chooses the next token
  under the mask. White space that JSON allows anywhere is a place to get lost in for a small model: start SGLang
  with `--constrained-json-disable-any-whitespace`.
- **What grammars cost**: the host waits for the device in each round of a batch that holds one, and rounds with a
  grammar or any of these fields are not replayed from a captured graph.
- **`seeded_blocks: false`** excludes `logprobs` and grammars.
- **`max_thinking_tokens`** writes `</think>` at that place of a thought that the prompt leaves open, in diffusion
  before the block is denoised.
"""


def markdown() -> str:
    """The page `docs/fields.md`."""
    modes = tuple(GenerationMode)
    lines = [
        f"| field | routes | {' | '.join(f'`{mode}`' for mode in modes)} | meaning |",
        "| --- " * (3 + len(modes)) + "|",
    ]
    for field in OPENAI_FIELDS:
        routes = ", ".join(route.removeprefix("/v1/") for route in field.examples)
        cells = [cell(field, next(iter(field.examples)), mode) for mode in modes]
        lines.append(f"| `{field.title}` | {routes} | {' | '.join(map(str, cells))} | {field.meaning} |")
    return _PAGE.format(table="\n".join(lines))
