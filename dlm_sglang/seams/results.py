"""What our rounds need from SGLang's result processing: silent prefills, accounting, statistics in the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sglang.srt.managers.scheduler_components.output_streamer import (
    DEFAULT_FORCE_STREAM_INTERVAL,
    SchedulerOutputStreamer,
)
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.utils.common import async_d2h

from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.logprobs import RoundLogprobs
from dlm_sglang.decode.watch import Watch, provisional_block
from dlm_sglang.params import DENOISING_KEY, FLAT_KEY
from dlm_sglang.seams.choices import Choices
from dlm_sglang.seams.logprobs import give_round_logprobs


@dataclass
class DlmRoundResult(GenerationBatchResult):
    """Result of a decode round, on its way to the host.

    Attributes:
        is_denoise: `[R]` bool, the round was a denoise forward for the row; None where no row could be one.
        logprobs: of the rows that return them, or None.
        watch: the rows whose denoising is streamed; None where there are none.
        watched_blocks: their blocks as the round left them, see `Watch.look`.
        choices: learn from the round.
        shape: of the round.
    """

    is_denoise: torch.Tensor | None = None
    logprobs: RoundLogprobs | None = None
    watch: Watch | None = None
    watched_blocks: torch.Tensor | None = None
    choices: Choices | None = None
    shape: RoundShape | None = None

    def copy_to_cpu(self, return_logprob: bool, return_hidden_states: bool = True) -> None:
        """Start the copies that result processing waits for, one iteration later when loops overlap."""
        if self.accept_lens is not None and self.accept_lens.is_cpu:
            # Already where it is read, and a round's tensors are its own: SGLang's profiler range costs 0.1 ms here.
            return
        if self.is_denoise is not None:
            self.is_denoise = async_d2h(self.is_denoise)
        if self.logprobs is not None:
            on_host = {
                name: async_d2h(value)
                for name, value in self.logprobs._asdict().items()
                if isinstance(value, torch.Tensor)
            }
            self.logprobs = self.logprobs._replace(**on_host)
        if self.watched_blocks is not None:
            self.watched_blocks = async_d2h(self.watched_blocks)
        super().copy_to_cpu(return_logprob, return_hidden_states)


def account_round(original: Callable[..., None], processor: Any, batch: Any, result: Any) -> None:
    """Count what the round did for each request, before SGLang ends and streams requests."""
    if isinstance(result, DlmRoundResult):
        if result.copy_done is not None:
            result.copy_done.synchronize()
        assert result.accept_lens is not None and result.choices is not None
        if result.logprobs is not None:
            give_round_logprobs(
                result.logits_output, result.logprobs, len(batch.reqs), result.speculative_num_draft_tokens
            )
        accept_lens = result.accept_lens.tolist()
        is_denoise = [False] * len(accept_lens) if result.is_denoise is None else result.is_denoise.tolist()
        for req, denoised, accepted in zip(batch.reqs, is_denoise, accept_lens, strict=True):
            # An overlapped round may have run for a request that ended, or was retracted, before it.
            if req.finished() or req.is_retracted:
                continue
            state = req.dlm
            state.stats.count_round(is_denoise=denoised, accept_len=accepted)
            state.num_scratch_tokens = accepted if denoised else 0
            state.num_pending_tokens -= result.choices.account(state, is_denoise=denoised, accept_len=accepted)
        if result.watch is not None and result.watched_blocks is not None:
            _note_blocks(batch.reqs, result.watch, result.watched_blocks.tolist(), is_denoise, accept_lens)
    original(processor, batch, result)
    if isinstance(result, DlmRoundResult) and result.choices is not None:
        result.choices.processed(result.shape)


def _note_blocks(
    reqs: list[Any], watch: Watch, blocks: list[list[int]], is_denoise: list[bool], accept_lens: list[int]
) -> None:
    """Keep what each watched row's stream is to tell of this round; called before the round's tokens are appended.

    A row that emitted has begun its next block, of which there is nothing to tell yet.
    """
    for row, values in zip(watch.rows, blocks, strict=True):
        req = reqs[row]
        goes_on = is_denoise[row] and accept_lens[row] == 0 and not req.finished() and not req.is_retracted
        state = req.dlm
        state.block = provisional_block(values, state.policy, len(req.output_ids)) if goes_on else None


def hold_emissions(original: Callable[..., None], processor: Any, batch: Any, result: Any) -> None:
    """Let the prefills that must not emit (`result.held_rows`) pass for one more chunk.

    SGLang neither appends a token nor streams for a prefill that is not finished; the request is in the
    running batch all the same and its next decode round finds the block state that the prefill left.
    """
    for row in getattr(result, "held_rows", ()):
        req = batch.reqs[row]
        if not req.finished() and not req.is_retracted:
            req.inflight_middle_chunks += 1
    original(processor, batch, result)
    choices = getattr(result, "choices", None)
    if choices is not None:
        choices.processed(None)


def skip_silent_rounds(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """Check for the end of a request only when it got tokens or was told to stop.

    SGLang looks at the last `new_accepted_len` tokens; the last zero of a list are all of them.
    """
    if new_accepted_len > 0 or req.to_finish:
        original(req, new_accepted_len)


class DlmOutputStreamer(SchedulerOutputStreamer):
    """Streams rows that have something to say; adds the statistics of finished requests, the blocks of watched ones."""

    has_additional_customized_info: ClassVar[bool] = True

    def stream_output(self, reqs: list[Any], return_logprob: bool, skip_req: Any = None) -> None:
        """Leave out rows that only denoised: SGLang would send each of them an empty event per round."""
        speaking = [req for req in reqs if _speaks(req)]
        if speaking:
            # Named base: a slotted dataclass is a new class, which zero-argument super() does not know.
            SchedulerOutputStreamer.stream_output(self, speaking, return_logprob, skip_req)

    def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
        """By name, one value per request: a list with its statistics once it finished; its watched block or None."""
        told: dict[str, list[Any]] = {FLAT_KEY: [_report(req) for req in reqs]}
        blocks = [_block(req) for req in reqs]
        if any(block is not None for block in blocks):
            told[DENOISING_KEY] = blocks
            for req, block in zip(reqs, blocks, strict=True):
                if block is not None:
                    req.dlm.block = None
        return told


def output_streamer_class(result: type, *_args: Any, **_kwargs: Any) -> type:
    """Replace SGLang's streamer class by ours, unless another plugin already did."""
    return DlmOutputStreamer if result is SchedulerOutputStreamer else result


def _speaks(req: Any) -> bool:
    """Whether a request has something to send; SGLang sends unstreamed ones that go on at certain lengths only."""
    if req.finished():
        return True
    if not req.stream:
        return len(req.output_ids) % DEFAULT_FORCE_STREAM_INTERVAL == 0
    return len(req.output_ids) > req.send_token_offset or _block(req) is not None


def _block(req: Any) -> dict[str, Any] | None:
    """What a watched request's stream is to tell of its last round."""
    state = getattr(req, "dlm", None)
    return None if state is None or req.finished() else state.block


def _report(req: Any) -> list[dict[str, Any]]:
    state = getattr(req, "dlm", None)
    if state is None or not req.finished():
        return []
    report: dict[str, Any] = state.stats.report(state.policy.mode.value)
    return [report | {name: part() for name, part in state.reports.items()}]
