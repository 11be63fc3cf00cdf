"""What our rounds need from SGLang's result processing: silent prefills and statistics in the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer

from dlm_sglang.params import FLAT_KEY


def hold_emissions(original: Callable[..., None], processor: Any, batch: Any, result: Any) -> None:
    """Let the prefills that must not emit pass for one more chunk.

    SGLang neither appends a token nor streams for a prefill that is not finished; the request is in the
    running batch all the same and its next decode round finds the block state that the prefill left.
    """
    for req in batch.reqs:
        state = getattr(req, "dlm", None)
        if state is None or not state.holds_emission:
            continue
        state.holds_emission = False
        if not req.finished() and not req.is_retracted:
            req.inflight_middle_chunks += 1
    original(processor, batch, result)


def skip_silent_rounds(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """Check for the end of a request only when it got tokens or was told to stop.

    SGLang looks at the last `new_accepted_len` tokens; the last zero of a list are all of them.
    """
    if new_accepted_len > 0 or req.to_finish:
        original(req, new_accepted_len)


class DlmOutputStreamer(SchedulerOutputStreamer):
    """Streams rows that have something to say, and adds the statistics of finished requests."""

    has_additional_customized_info: ClassVar[bool] = True

    def stream_output(self, reqs: list[Any], return_logprob: bool, skip_req: Any = None) -> None:
        """Leave out rows that only denoised: SGLang would send each of them an empty event per round."""
        speaking = [req for req in reqs if req.finished() or len(req.output_ids) > req.send_token_offset]
        # Named base: a slotted dataclass is a new class, which zero-argument super() does not know.
        SchedulerOutputStreamer.stream_output(self, speaking, return_logprob, skip_req)

    def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
        """One list per request: empty until it finished, then its statistics."""
        return {FLAT_KEY: [_report(req) for req in reqs]}


def output_streamer_class(result: type, *_args: Any, **_kwargs: Any) -> type:
    """Replace SGLang's streamer class by ours, unless another plugin already did."""
    return DlmOutputStreamer if result is SchedulerOutputStreamer else result


def _report(req: Any) -> list[dict[str, Any]]:
    state = getattr(req, "dlm", None)
    if state is None or not req.finished():
        return []
    return [state.stats.report(state.policy.mode.value)]
