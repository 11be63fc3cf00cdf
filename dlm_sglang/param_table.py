"""The table of request parameters: names, types, ranges, modes, meanings.

Validation (`params.py`), the reference page and the JSON schema (`dlm-sglang params`) read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MIN_BLOCK_LENGTH = 2
MAX_LATENCY_BUDGET_MS = 3_600_000


class GenerationMode(StrEnum):
    """How a request decodes; a preset of the decoding policy."""

    AUTOREGRESSIVE = "autoregressive"
    DIFFUSION = "diffusion"
    SELF_SPECULATION = "self_speculation"
    AUTO = "auto"


MODE_ALIASES = {"ar": GenerationMode.AUTOREGRESSIVE}
MODE_BY_NAME: Mapping[str, GenerationMode] = {mode.value: mode for mode in GenerationMode} | MODE_ALIASES
_DIFFUSION = frozenset({GenerationMode.DIFFUSION})
_SELF_SPECULATION = frozenset({GenerationMode.SELF_SPECULATION})
_BLOCKWISE = _DIFFUSION | _SELF_SPECULATION
_AUTO = frozenset({GenerationMode.AUTO})


@dataclass(frozen=True)
class Field:
    """One row of the table.

    Attributes:
        json_type: `string`, `integer`, `number` or `boolean`.
        allowed: the range in words; `{max_block_length}` is filled in from the server's limits.
        default: the default in words.
        modes: modes that honour the field.
        elsewhere: why the other modes do not honour it, where that is not plain.
        nullable: an explicit null is a value of its own; elsewhere null means "not given".
    """

    name: str
    json_type: str
    allowed: str
    default: str
    modes: frozenset[GenerationMode]
    meaning: str
    nullable: bool = False
    condition: str = ""
    elsewhere: str = ""


FIELDS: tuple[Field, ...] = (
    Field(
        "generation_mode",
        "string",
        "`autoregressive` (or `ar`), `diffusion`, `self_speculation`, `auto`",
        "the server's `default_generation_mode`",
        frozenset(GenerationMode),
        "how tokens are produced; `auto` gives the tokens of `autoregressive`, by blocks whose length follows load",
    ),
    Field(
        "block_length",
        "integer",
        "2..{max_block_length}",
        "the server's `default_block_length`; in `auto` the longest that the server allows",
        _BLOCKWISE | _AUTO,
        "positions decoded together, the seed token included; in `auto` the longest that may be chosen",
    ),
    Field(
        "max_denoising_steps",
        "integer",
        "1..`block_length`",
        "`block_length`",
        _BLOCKWISE,
        "denoise forwards allowed per block; masks left at the last step are all filled",
        condition="in `self_speculation` only with `draft_threshold` above 0",
    ),
    Field(
        "confidence_threshold",
        "number",
        "above 0, at most 1, or null",
        "the server's default, 0.9 unless changed",
        _DIFFUSION,
        "a mask is filled when its token's probability reaches this, at least one per step; "
        "null spreads the masks evenly over the steps",
        nullable=True,
    ),
    Field(
        "draft_threshold",
        "number",
        "0..1",
        "the server's default, 0 unless changed",
        _SELF_SPECULATION,
        "0 drafts a block in one denoise forward; above 0 denoises until every mask reached it",
    ),
    Field(
        "seeded_blocks",
        "boolean",
        "true or false",
        "true",
        _DIFFUSION,
        "true starts a block with the token that the causal forward predicts; false starts it all masked",
    ),
    Field(
        "max_thinking_tokens",
        "integer",
        "0 or more",
        "no limit",
        frozenset(GenerationMode),
        "tokens after which a thought that the prompt leaves open is ended by `</think>`",
    ),
    Field(
        "stream_denoising",
        "boolean",
        "true or false",
        "false",
        _BLOCKWISE | _AUTO,
        "the stream also tells of each block as it stands after every denoise forward (docs/streaming.md)",
        condition="only with `stream`",
    ),
    Field(
        "latency_budget_ms",
        "integer",
        f"1..{MAX_LATENCY_BUDGET_MS}",
        "no budget",
        _DIFFUSION,
        "milliseconds from the request's arrival to its last token, should it use all of `max_tokens`; where time runs "
        "short, threshold and steps fall, down to `budget_min_threshold` and `budget_min_steps`",
        elsewhere="the other modes give the model's plain output, which does not come sooner for settling for less",
    ),
)
FIELD_BY_NAME: Mapping[str, Field] = {field.name: field for field in FIELDS}
