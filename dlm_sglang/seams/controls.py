"""From SGLang's requests to the controls of our rounds: sampling parameters, grammars, thinking tags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from dlm_sglang.api.infill import FIXED_KEY
from dlm_sglang.decode.controlled import ControlledRow, RoundControls, make_controls
from dlm_sglang.decode.controls import Controls, history_of
from dlm_sglang.decode.grammar import Matcher
from dlm_sglang.params import DecodeParams, GenerationMode

THINK, END_THINK = "<think>", "</think>"


def controls_of(req: Any, params: DecodeParams, stop_ids: tuple[int, ...]) -> Controls | None:
    """What `req` asks for beyond sampling, or None."""
    sampling = req.sampling_params
    bias = sampling.logit_bias or {}
    has_grammar = req.grammar is not None
    wants_logprobs = bool(req.return_logprob)
    controls = Controls(
        frequency_penalty=float(sampling.frequency_penalty or 0.0),
        presence_penalty=float(sampling.presence_penalty or 0.0),
        repetition_penalty=float(sampling.repetition_penalty or 1.0),
        logit_bias=tuple((int(token_id), float(value)) for token_id, value in bias.items()),
        min_new_tokens=int(sampling.min_new_tokens or 0),
        banned_ids=stop_ids,
        max_thinking_tokens=_thinking_budget(req, params),
        end_think_id=_id_of(req.tokenizer, END_THINK),
        first_position=len(req.origin_input_ids),
        wants_logprobs=wants_logprobs,
        num_top_logprobs=int(req.logprob.top_logprobs_num or 0) if wants_logprobs else 0,
        commits_by_prefix=params.mode is GenerationMode.DIFFUSION and (has_grammar or wants_logprobs),
        is_seeded=params.seeded_blocks,
        fixed_ids=tuple((sampling.custom_params or {}).get(FIXED_KEY) or ()),
    )
    return controls if controls.concerns_choice or controls.wants_logprobs else None


def round_controls(
    reqs: Sequence[Any], widths: Sequence[int], vocab_size: int, device: torch.device | str
) -> RoundControls | None:
    """The controls of a decode round with these query tokens per row."""
    rows = [ControlledRow(req.dlm.controls, req.dlm.history, _matcher(req)) for req in reqs]
    if not any(row.controls or row.matcher for row in rows):
        return None
    return make_controls(rows, widths, vocab_size, device)


def prefill_controls(reqs: Sequence[Any], vocab_size: int, device: torch.device | str) -> RoundControls | None:
    """The controls of a prefill, with histories made from what the requests have emitted so far."""
    rows = []
    for req in reqs:
        controls = req.dlm.controls
        if controls is not None:
            req.dlm.history = history_of(controls, req.output_ids, vocab_size, device)
        rows.append(ControlledRow(controls, req.dlm.history, _matcher(req)))
    if not any(row.controls or row.matcher for row in rows):
        return None
    return make_controls(rows, [1] * len(reqs), vocab_size, device)


def _matcher(req: Any) -> Matcher | None:
    """The request's grammar, while it has something to say."""
    matcher: Matcher | None = req.grammar
    return None if matcher is None or req.finished() else matcher


def _thinking_budget(req: Any, params: DecodeParams) -> int | None:
    """The budget, if the prompt leaves a thought open."""
    if params.max_thinking_tokens is None:
        return None
    begin, end = _id_of(req.tokenizer, THINK), _id_of(req.tokenizer, END_THINK)
    for token_id in reversed(req.origin_input_ids):
        if token_id in (begin, end):
            return params.max_thinking_tokens if token_id == begin else None
    return None


@cache
def _id_of(tokenizer: Any, tag: str) -> int:
    """The id of a tag that is one token, or -1; a process has one tokenizer, and asks it for every request."""
    token_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(tag)
    return -1 if token_id is None or token_id == tokenizer.unk_token_id else int(token_id)
