"""Infilling on `/v1/completions`: `suffix`, or a text with blanks; both become ids that the output has to hold.

A block is denoised with all of its positions in view, and after everything before it. So what stands behind a blank
is seen as far as the blank's block reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dlm_sglang.errors import RequestError, shown
from dlm_sglang.param_table import GenerationMode

INFILL = "infill"
SUFFIX = "suffix"
# Our keys of `custom_params`: what the client sent, and what the worker reads.
INFILL_KEY = "dlm_infill"
FIXED_KEY = "dlm_fixed_ids"
BLANK = -1
# Blanks hold as many tokens as they say; nothing may end the answer before the last of them.
_SET_BY_INFILL = ("max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos")

Items = list[str | int]


def infill_of(body: Mapping[str, object]) -> Items | None:
    """What a request wants filled in, as texts and numbers of blank tokens; a suffix is one text after the gap.

    Raises:
        RequestError: both fields are given, or a field is not what it has to be.
    """
    infill, suffix = body.get(INFILL), body.get(SUFFIX)
    if infill is None and suffix in (None, ""):
        return None
    if infill is not None and suffix not in (None, ""):
        raise RequestError(
            "infill and suffix cannot be combined", param=INFILL, code="parameter-conflict", hint="send one of them"
        )
    name = SUFFIX if infill is None else INFILL
    if "messages" in body:
        raise RequestError(
            f"{name} is not read on this route", param=name, code="parameter-misplaced", hint="use /v1/completions"
        )
    if infill is None:
        if not isinstance(suffix, str):
            raise RequestError(f"suffix must be a text, got {shown(suffix)}", param=SUFFIX, code="parameter-type")
        return [suffix]
    items = _checked(infill)
    for other in _SET_BY_INFILL:
        if body.get(other) is not None:
            raise RequestError(
                f"{other} cannot be combined with infill, whose blanks say how long the answer is",
                param=other,
                code="parameter-conflict",
                hint=f"leave {other} out",
            )
    return items


def _checked(infill: object) -> Items:
    allowed = "a list of texts and of numbers of blank tokens, 1 or more, with a blank in it"
    wrong = RequestError(f"infill must be {allowed}, got {shown(infill)}", param=INFILL, code="parameter-type")
    if not isinstance(infill, list):
        raise wrong
    items: Items = []
    for item in infill:
        if isinstance(item, bool) or not isinstance(item, str | int) or (isinstance(item, int) and item < 1):
            raise wrong
        items.append(item)
    if not any(isinstance(item, int) for item in items):
        raise wrong
    return items


def check_mode(fields: dict[str, object], default_mode: GenerationMode, name: str) -> dict[str, object]:
    """The request's own fields with the mode that can fill in: diffusion with unseeded blocks.

    Raises:
        RequestError: the client asked for another mode, or for seeded blocks.
    """
    mode = fields.get("generation_mode")
    if mode is None or mode == GenerationMode.DIFFUSION:
        if fields.get("seeded_blocks") is True:
            raise RequestError(
                f"{name} needs blocks without a seed, which is chosen before the block is seen; got seeded_blocks true",
                param="seeded_blocks",
                code="parameter-conflict",
                hint="leave seeded_blocks out",
            )
        return {**fields, "generation_mode": GenerationMode.DIFFUSION.value, "seeded_blocks": False}
    raise RequestError(
        f"{name} is not supported in {shown(mode)} mode: a causal forward does not see what follows",
        param=name,
        code="parameter-unsupported",
        hint="leave generation_mode out or send diffusion",
    )


def resolve(
    custom: Mapping[str, object],
    max_new_tokens: int,
    block_length: int,
    tokenize: Callable[[str], Sequence[int]],
) -> list[int] | None:
    """What the output has to hold, -1 where the model chooses; None where nothing is filled in.

    Args:
        custom: the request's resolved `custom_params`.
        max_new_tokens: length of the gap before a suffix.
        block_length: positions per block.
        tokenize: ids of a text without special tokens.

    Raises:
        RequestError: the suffix would stand behind the block that the gap ends in.
    """
    items = custom.get(INFILL_KEY)
    if not isinstance(items, list):
        return None
    if len(items) == 1 and isinstance(items[0], str):
        end = -(-max_new_tokens // block_length) * block_length
        if end == max_new_tokens:
            raise RequestError(
                f"the gap of max_tokens {max_new_tokens} ends with a block of block_length {block_length}, so that no "
                "token of the suffix would be seen",
                param=SUFFIX,
                code="parameter-out-of-range",
                hint="send a max_tokens below block_length",
            )
        return [BLANK] * max_new_tokens + list(tokenize(items[0]))[: end - max_new_tokens]
    fixed: list[int] = []
    for item in items:
        fixed += [BLANK] * item if isinstance(item, int) else list(tokenize(str(item)))
    return fixed
