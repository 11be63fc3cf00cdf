"""What the decode worker cannot honour in this release: refused, never ignored.

One table for three surfaces, because SGLang spells the same thing differently on each:

- `openai`: top-level fields of `/v1/chat/completions` and `/v1/completions`;
- `native`: top-level fields of `/generate`, and of SGLang's internal request on every other route;
- `sampling`: keys of `sampling_params` on `/generate`, and of SGLang's internal sampling parameters;
- `custom`: keys of `custom_params`, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from dlm_sglang.errors import RequestError, shown
from dlm_sglang.param_table import GenerationMode

_LOGPROBS = "of each token the worker returns the log-probability and the most probable alternatives"


class Surface(Enum):
    """Where a field stands in a request."""

    OPENAI = "openai"
    NATIVE = "native"
    SAMPLING = "sampling"
    CUSTOM = "custom"


def _unset(value: object) -> bool:
    return value is None or value is False or value == "" or value == [] or value == {}


def _zero(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and value == 0)


def _one(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value == 1)


def _text_format(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and value.get("type") == "text")


def _free_tool_choice(value: object) -> bool:
    return value is None or value in ("auto", "none")


def _free_tools(value: object) -> bool:
    if not isinstance(value, list):
        return True
    functions = [tool.get("function") for tool in value if isinstance(tool, Mapping)]
    return not any(isinstance(function, Mapping) and function.get("strict") for function in functions)


@dataclass(frozen=True)
class Refusal:
    """A field that is refused unless its value changes nothing.

    Attributes:
        changes_nothing: true for the values that are as good as leaving the field out.
        neutral: those values in words.
        refused_in: the modes whose rounds cannot honour it.
        needs_seeds: refused with `seeded_blocks: false`.
    """

    name: str
    surfaces: frozenset[Surface]
    changes_nothing: Callable[[object], bool]
    neutral: str
    reason: str
    refused_in: frozenset[GenerationMode] = frozenset(GenerationMode)
    needs_seeds: bool = False


def _row(
    names: str,
    surfaces: str,
    changes_nothing: Callable[[object], bool],
    neutral: str,
    reason: str,
    refused_in: Collection[GenerationMode] = frozenset(GenerationMode),
    *,
    needs_seeds: bool = False,
) -> list[Refusal]:
    places = frozenset(Surface(place) for place in surfaces.split())
    modes = frozenset(refused_in)
    return [Refusal(name, places, changes_nothing, neutral, reason, modes, needs_seeds) for name in names.split()]


_NONE: frozenset[GenerationMode] = frozenset()
_SEEDS = "it follows the causal row before each block, which an unseeded block does not have"

REFUSALS: tuple[Refusal, ...] = (
    *_row("custom_logit_processor", "openai native", _unset, "null", "the worker runs no code that a request brings"),
    *_row("thinking_budget", "custom", _unset, "null", "the field is max_thinking_tokens here"),
    *_row("max_thinking_tokens", "native", _unset, "null", "it belongs into sampling_params.custom_params"),
    *_row("return_sampling_mask", "openai native", _unset, "false", _LOGPROBS),
    *_row("return_entropy", "native", _unset, "false", _LOGPROBS),
    *_row("token_ids_logprob", "native", _unset, "null", _LOGPROBS),
    *_row("return_hidden_states", "openai native", _unset, "false", "the worker does not return hidden states"),
    *_row("beam_width", "sampling", _one, "1", "the worker decodes one sequence per request, without beams"),
    *_row("use_beam_search", "openai", _unset, "false", "the worker decodes one sequence per request, without beams"),
    *_row("lora_path", "openai native", _unset, "null", "the worker serves no adapters chosen by the request"),
    *_row("session_params", "openai native", _unset, "null", "the worker does not continue SGLang sessions"),
    *_row(
        "suffix",
        "openai",
        _unset,
        "null",
        "a causal forward does not see what follows",
        frozenset(GenerationMode) - {GenerationMode.DIFFUSION},
    ),
    *_row("best_of", "openai", _one, "1", "the worker returns every choice that it decodes"),
    *_row("functions function_call", "openai", _unset, "null", "this old form of tools and tool_choice is not served"),
    *_row("input_embeds positional_embed_overrides", "native", _unset, "null", "the worker takes token ids only"),
    *_row("response_format", "openai", _text_format, '{"type": "text"}', _SEEDS, _NONE, needs_seeds=True),
    *_row("regex ebnf json_schema structural_tag", "openai sampling", _unset, "null", _SEEDS, _NONE, needs_seeds=True),
    *_row("tool_choice", "openai", _free_tool_choice, '"auto" or "none"', _SEEDS, _NONE, needs_seeds=True),
    *_row("tools", "openai", _free_tools, "functions without strict", _SEEDS, _NONE, needs_seeds=True),
    *_row("logprobs", "openai", _unset, "false", _SEEDS, _NONE, needs_seeds=True),
    *_row("return_logprob", "native", _unset, "false", _SEEDS, _NONE, needs_seeds=True),
)

# Every request is held against the table five times on its way through the layers.
REFUSALS_ON = {surface: tuple(row for row in REFUSALS if surface in row.surfaces) for surface in Surface}


def refuse_unsupported(
    fields: Mapping[str, object],
    surface: Surface,
    modes: Collection[GenerationMode] = frozenset(GenerationMode),
    prefix: str = "",
    *,
    is_seeded: bool = True,
) -> None:
    """Refuse the first field whose value asks for something that the worker cannot honour.

    A list on the native surface holds one value per prompt; any of them can be refused.

    Args:
        fields: the request's fields.
        surface: where they stand.
        modes: the modes of the request's prompts.
        prefix: what stands before a field's name in messages.
        is_seeded: every prompt has seeded blocks.

    Raises:
        RequestError: its `param` is the field's name behind `prefix`.
    """
    for refusal in REFUSALS_ON[surface]:
        if refusal.name not in fields:
            continue
        is_supported = refusal.refused_in.isdisjoint(modes) and (is_seeded or not refusal.needs_seeds)
        if is_supported:
            continue
        value = fields[refusal.name]
        per_prompt = surface is Surface.NATIVE and isinstance(value, list)
        values = value if per_prompt and isinstance(value, list) else [value]
        if not all(refusal.changes_nothing(one) for one in values):
            raise _refused(refusal, value, prefix)


def _refused(refusal: Refusal, value: object, prefix: str) -> RequestError:
    others = [mode for mode in GenerationMode if mode not in refusal.refused_in]
    if refusal.needs_seeds:
        return RequestError(
            f"{prefix}{refusal.name} is not supported with seeded_blocks false, got {shown(value)}: {refusal.reason}",
            param=f"{prefix}{refusal.name}",
            code="parameter-unsupported",
            hint=f"leave it out or send {refusal.neutral}, or leave seeded_blocks out",
        )
    where = f"in {' and '.join(sorted(refusal.refused_in))} mode" if others else "by this server"
    way_out = f"leave it out or send {refusal.neutral}"
    return RequestError(
        f"{prefix}{refusal.name} is not supported {where}, got {shown(value)}: {refusal.reason}",
        param=f"{prefix}{refusal.name}",
        code="parameter-unsupported",
        hint=f"{way_out}, or choose generation_mode {' or '.join(others)}" if others else way_out,
    )
