"""Our hooks on SGLang's tokenizer manager: what is about to be decoded, and what came of it.

They run in every process that takes requests, whatever the route: OpenAI, Anthropic, Ollama, gRPC, `Engine`.
While the server decodes with another algorithm than ours, all of them do nothing.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable
from contextlib import aclosing
from functools import cache
from http import HTTPStatus
from typing import Any

from dlm_sglang.api import denoising, infill, report
from dlm_sglang.api.errors import overloaded
from dlm_sglang.api.front import Front
from dlm_sglang.api.metrics import ABORTED, Metrics
from dlm_sglang.api.size import check_integers, check_prompt, sized
from dlm_sglang.api.translate import all_seeded, modes_of, translate_sampling
from dlm_sglang.api.unsupported import REFUSALS_ON, Surface, refuse_unsupported
from dlm_sglang.errors import RequestError
from dlm_sglang.params import DENOISING_KEY, FLAT_KEY
from dlm_sglang.seams.drain import refuse_while_draining
from dlm_sglang.seams.http_denoising import note_block, with_blocks
from dlm_sglang.seams.names import ALGORITHM
from dlm_sglang.seams.sampling_types import check_types
from dlm_sglang.settings import DecodeSettings, FrontSettings

logger = logging.getLogger(__name__)

_metrics: list[Metrics] = []
# What OpenAI's API takes where a completion says no max_tokens.
_DEFAULT_GAP = 16
_OUR_KEYS = (report.STATS_KEY, DENOISING_KEY)
_STUMBLES = (AssertionError, AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError)


def front() -> Front | None:
    """What the server in this process serves, or None while it decodes with another algorithm."""
    from sglang.srt.entrypoints.http_server import get_global_state

    state = get_global_state()
    return None if state is None else front_of(state.tokenizer_manager)


@cache
def front_of(manager: Any) -> Front | None:
    """What stands behind a tokenizer manager, or None as in `front`."""
    from sglang.srt.runtime_context import get_spec

    if not is_ours():
        return None
    limits = DecodeSettings.from_env().limits(
        max_block_length=get_spec().speculative_num_draft_tokens,
        checkpoint_block_length=getattr(manager.model_config.hf_config, "block_size", None),
    )
    settings = FrontSettings.from_env()
    if settings.served_model_name is not None:
        # SGLang does not start with such a name, but serves it.
        manager.served_model_name = settings.served_model_name
    return Front(limits, manager.served_model_name, settings)


def is_ours() -> bool:
    """Whether the server in this process decodes with our algorithm."""
    from sglang.srt.runtime_context import get_spec

    return str(get_spec().speculative_algorithm).upper() == ALGORITHM


def start_metrics() -> None:
    """Make the series, once SGLang has said where the processes share them."""
    from sglang.srt.runtime_context import get_observability

    if is_ours() and get_observability().enable_metrics and not _metrics:
        _metrics.append(Metrics())


def count_refused(code: str) -> None:
    """Count a request that was refused."""
    for metrics in _metrics:
        metrics.refused(code)


async def generate_request(original: Callable[..., Any], manager: Any, obj: Any, request: Any = None) -> Any:
    """Check what is about to be decoded, by whatever route it came, and report what ran."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    at = front_of(manager)
    counted: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if at is not None and isinstance(obj, GenerateReqInput):
        try:
            refuse_while_draining(manager)
            _translate_internal(obj, at, manager)
        except RequestError as error:
            count_refused(error.code)
            _has_no_ids(obj)
            raise report.refuse(error) from error
        if _metrics and getattr(obj, "log_metrics", True):
            counted = _metrics[0].in_flight(_mode_of(obj.sampling_params))
    with counted:
        async with aclosing(original(manager, obj, request)) as outputs:
            is_first = True
            shown = _prepared(outputs, obj) if at is not None else outputs
            if at is not None and isinstance(obj, GenerateReqInput) and denoising.is_watched(obj.sampling_params):
                shown = with_blocks(shown, manager.tokenizer)
            async for output in shown:
                if at is not None and is_first and _is_overloaded(output):
                    # A stream would begin with 200 and then hold an error.
                    raise report.refuse(overloaded(output["meta_info"]["finish_reason"]["message"]))
                is_first = False
                report.record_output(output)
                yield output
    _forget_unsent(manager, obj)


async def _prepared(outputs: Any, obj: Any) -> Any:
    """SGLang's outputs; what it stumbles over before the first of them is the request's fault, not the server's.

    SGLang has no check of fields against each other, such as lists of different lengths, and would answer 500.
    """
    has_begun = False
    try:
        async for output in outputs:
            has_begun = True
            yield output
    except (ValueError, *_STUMBLES) as error:
        if has_begun:
            raise
        # SGLang has dropped or aborted what it had begun.
        _has_no_ids(obj)
        if isinstance(error, ValueError):
            raise
        *_, last = traceback.extract_tb(error.__traceback__)
        logger.info("a request was refused: %s in %s:%s", type(error).__name__, last.filename, last.lineno)
        count_refused("invalid-request")
        told = RequestError("fields of the request do not fit together, or hold values of another type", param=None)
        raise report.refuse(told) from error


def _has_no_ids(obj: Any) -> None:
    """Leave SGLang nothing to abort after the response: it would fail on a request that never got its ids."""
    obj.is_single, obj.rid = False, []


def validate_one_request(original: Callable[..., None], manager: Any, obj: Any, input_ids: Any) -> None:
    """Refuse a prompt above our limit, before SGLang compares it with the context, or with tokens that are none.

    SGLang hands on whatever ids a client sends; none at all, or one outside the vocabulary, would end the scheduler.
    """
    at = front_of(manager)
    if at is not None and input_ids is not None:
        try:
            check_prompt(
                input_ids,
                at.settings.max_prompt_tokens,
                manager.model_config.vocab_size,
                "prompt" if getattr(obj, "text", None) is not None else "messages",
            )
        except RequestError as error:
            count_refused(error.code)
            raise report.refuse(error) from error
    original(manager, obj, input_ids)


def update_request_meta_info(
    original: Callable[..., None], manager: Any, meta_info: Any, state: Any, info: Any, index: int, reason: Any
) -> None:
    """Put the worker's statistics and blocks into `meta_info` whole: SGLang would keep them as a list per token."""
    reported, blocks = info.get(report.STATS_KEY), info.get(DENOISING_KEY)
    rest = {key: values for key, values in info.items() if key not in _OUR_KEYS}
    original(manager, meta_info, state, rest, index, reason)
    note_block(meta_info, state, None if blocks is None else blocks[index])
    stats = reported[index][-1] if reported and reported[index] else None
    if stats:
        meta_info[report.STATS_KEY] = stats
    if reason is not None:
        _count_ended(state, stats, reason, meta_info.get("completion_tokens", 0))


def handle_abort(original: Callable[..., None], manager: Any, received: Any) -> None:
    """Count a request that ends before a round could tell of it: dropped from the queue, or refused there."""
    state = manager.rid_to_state.get(received.rid)
    if state is not None and front_of(manager) is not None:
        _count_ended(state, None, {"type": ABORTED}, len(getattr(state, "output_ids", ())))
    original(manager, received)


def whole_model_name(original: Callable[..., Any], serving: Any, model: str) -> Any:
    """Take a name with a colon for a name: the worker serves no adapters, which SGLang would look for in it."""
    return (model, None) if is_ours() else original(serving, model)


def _count_ended(state: Any, stats: Any, reason: Any, num_tokens: int) -> None:
    obj = getattr(state, "obj", None)
    if not _metrics or obj is None or not getattr(obj, "log_metrics", True):
        return
    kind = reason.get("type") if isinstance(reason, dict) else reason
    asked = obj.sampling_params.get("max_new_tokens") if isinstance(obj.sampling_params, dict) else None
    if kind == "length" and num_tokens == 0 and asked != 0:
        # Not a choice: SGLang prefills the prompt of several choices once, before them.
        return
    _metrics[0].ended(stats, _mode_of(obj.sampling_params) or "unknown", str(kind), num_tokens)


def _mode_of(sampling: Any) -> str | None:
    """The mode that our front end resolved; of a list of prompts, the first one's."""
    first = sampling[0] if isinstance(sampling, list) and sampling else sampling
    custom = first.get("custom_params") if isinstance(first, dict) else None
    flat = custom.get(FLAT_KEY) if isinstance(custom, dict) else None
    return flat.get("generation_mode") if isinstance(flat, dict) else None


def _is_overloaded(output: Any) -> bool:
    reason = output.get("meta_info", {}).get("finish_reason") if isinstance(output, dict) else None
    return isinstance(reason, dict) and reason.get("status_code") == HTTPStatus.SERVICE_UNAVAILABLE


_NATIVE_NAMES = tuple(refusal.name for refusal in REFUSALS_ON[Surface.NATIVE])


def _translate_internal(obj: Any, at: Front, manager: Any) -> None:
    """Check SGLang's internal request and resolve its decode parameters in place."""
    check_types(obj.sampling_params)
    sampling = translate_sampling(obj.sampling_params, at.limits, resolved=True)
    for one in sampling if isinstance(sampling, list) else [sampling]:
        if isinstance(one, dict):
            _resolve_infill(one, manager)
    native = {name: getattr(obj, name, None) for name in _NATIVE_NAMES}
    refuse_unsupported(native, Surface.NATIVE, modes_of(sampling), is_seeded=all_seeded(sampling))
    check_integers({name: getattr(obj, name, None) for name in ("priority", "logprob_start_len", "top_logprobs_num")})
    denoising.require_stream(sampling, is_stream=bool(obj.stream))
    obj.sampling_params = sized(sampling, at.settings.max_output_tokens)


def _resolve_infill(sampling: dict[str, Any], manager: Any) -> None:
    """Turn what a request wants filled in into ids that its output has to hold, in place."""
    custom = sampling["custom_params"]
    if infill.INFILL_KEY not in custom:
        return
    gap = sampling.get("max_new_tokens")
    fixed = infill.resolve(
        custom,
        _DEFAULT_GAP if gap is None else int(gap),
        custom[FLAT_KEY]["block_length"],
        lambda text: manager.tokenizer.encode(text, add_special_tokens=False),
    )
    kept = {key: value for key, value in custom.items() if key != infill.INFILL_KEY}
    sampling["custom_params"] = {**kept, infill.FIXED_KEY: fixed}
    if fixed is not None and len(custom[infill.INFILL_KEY]) > 1:
        sampling.update(max_new_tokens=len(fixed), min_new_tokens=len(fixed), ignore_eos=True)


def _forget_unsent(manager: Any, obj: Any) -> None:
    """Drop the states that SGLang makes for a streamed request with n > 1 and never sends or removes.

    They would pile up, and keep the server from ever ending on SIGTERM.
    TODO(sglang>0.5.21): drop when `_handle_batch_request` removes every state of the request it expands.
    """
    for rid in obj.rid if isinstance(obj.rid, list) else [obj.rid]:
        state = manager.rid_to_state.get(rid)
        if state is not None and not state.dispatched:
            del manager.rid_to_state[rid]
