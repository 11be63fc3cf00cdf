"""What a decode round hands to SGLang: the state between rounds, the metadata of one forward, KV slots."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from sglang.srt.mem_cache.allocation import alloc_for_spec_decode
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType

from dlm_sglang.decode.controlled import RoundControls
from dlm_sglang.decode.layout import RoundLayout
from dlm_sglang.decode.round import RoundInputs
from dlm_sglang.decode.watch import Watch
from dlm_sglang.seams.choices import Choices


class DlmRoundState(SpecInput):
    """What a running batch carries between rounds. State of rows lives in `BlockState`, by request slot.

    Attributes:
        max_block_length: longest block of any row, for bounds.
        layout: of the batch's rounds, kept until a request joins or leaves; None before it is made.
        controls: what some rows ask for beyond sampling, as long-lived as the layout; None if nothing.
        watch: the rows whose denoising is streamed, made with the layout; None where there are none.
        may_cut: some row is so near the context's end that its block may not fit.
        max_kv_len: upper bound of any row's keys in the coming round.
        choices: who chooses block lengths under `auto`, and effort under a budget.
        widths: positions of each row in the coming round.
        num_kv_tokens: keys of all rows together, as far as the host knows.
        future_indices: set by SGLang's overlapped loop; `DlmFutureMap` goes by the batch's own slots.
    """

    num_tokens_per_req = 1
    num_tokens_for_logprob_per_req = 1
    future_indices: torch.Tensor | None = None
    # What SGLang's relay between overlapped iterations would carry for other algorithms.
    bonus_tokens = topk_p = topk_index = hidden_states = dsa_topk_indices = None

    def __init__(self, max_block_length: int) -> None:
        super().__init__(SpecInputType.UNO_STATE)
        self.max_block_length = max_block_length
        self.layout: RoundLayout | None = None
        self.controls: RoundControls | None = None
        self.watch: Watch | None = None
        self.may_cut = False
        self.max_kv_len = 0
        self.choices: Choices | None = None
        self.widths: list[int] = []
        self.num_kv_tokens = 0

    def filter_batch(self, new_indices: torch.Tensor, new_indices_cpu: list[int] | None = None) -> None:
        """Follow the batch when requests leave it."""
        self.layout = None

    def merge_batch(self, other: DlmRoundState) -> None:
        """Follow the batch when another joins it."""
        self.layout = None


class DlmForwardInput(SpecInput):
    """Metadata of one mixed forward.

    Attributes:
        inputs: what the forward reads.
        max_kv_len: host-known upper bound of the rows' key lengths.
        draft_rows: `[T]` float32, 1 where the drafter adapter applies; None where it cannot.
    """

    capture_hidden_mode = CaptureHiddenMode.NULL

    def __init__(self, inputs: RoundInputs, max_kv_len: int) -> None:
        super().__init__(SpecInputType.UNO_VERIFY)
        self.inputs = inputs
        self.max_kv_len = max_kv_len
        self.draft_rows = inputs.draft_rows


# Slots taken at once beyond a row's needs while the pool has room: an allocation per token costs more than it. Whoever
# has less than half of it left then gets as many, so that one allocation serves the whole batch for some rounds.
LOOKAHEAD = 64
# "Room" is when this many times the lookahead of every row is free or can be evicted.
ROOMY = 4


def prepare_decode_round(original: Any, batch: Any) -> None:
    """Reserve KV slots for each row's block; other algorithms keep SGLang's own preparation.

    SGLang would reserve twice the server's largest block for every row, also for autoregressive ones, and
    past the request table's width at the context end. A row needs its own block and what its rounds still on
    the way may emit, at most up to the context end.

    Args:
        original: SGLang's function, called for batches that are not ours.
        batch: the `ScheduleBatch` about to run a decode round.
    """
    spec_info = batch.spec_info
    if not isinstance(spec_info, DlmRoundState):
        original(batch)
        return
    allocator = batch.token_to_kv_pool_allocator
    page_size = allocator.page_size
    if spec_info.choices is not None:
        spec_info.choices.choose(batch)
    context_length = batch.reqs[0].dlm.context_length
    rows, num_needed, may_cut = [], 0, False
    widths, reaches, spec_info.num_kv_tokens = [], [], 0
    for row, req in enumerate(batch.reqs):
        kv, state = req.kv, req.dlm
        num_pending = state.num_pending_tokens
        widths.append(state.launch())
        reach = kv.kv_committed_len + num_pending + widths[-1]
        reaches.append(reach)
        spec_info.num_kv_tokens += kv.kv_committed_len
        may_cut = may_cut or not (state.auto is None or state.auto.is_settled)
        # Most rows hold their slots already: only the others pay for the exact count.
        if kv.kv_allocated_len < reach:
            missing = _whole_pages(reach, context_length, page_size) - kv.kv_allocated_len
            if missing > 0:
                rows.append((req, row, reach))
                num_needed += missing
    if widths != spec_info.widths:
        spec_info.widths, spec_info.layout = widths, None
    longest = max(reaches)
    spec_info.may_cut = may_cut or longest > context_length
    spec_info.max_kv_len = min(longest, context_length)
    if not rows:
        return
    lookahead = 0
    # Prefixes that can be evicted are room: a server that has run for a while has no other.
    num_free = allocator.available_size() + batch.tree_cache.evictable_size()
    if num_free >= num_needed + ROOMY * LOOKAHEAD * len(batch.reqs):
        lookahead = LOOKAHEAD
        rows = [
            (req, row, reaches[row])
            for row, req in enumerate(batch.reqs)
            if req.kv.kv_allocated_len < min(reaches[row] + LOOKAHEAD // 2, context_length)
        ]
    _allocate(batch, rows, lookahead)


def leave_batch_as_it_is(
    original: Callable[..., AbstractContextManager[None]], scheduler: Any, batch: Any, *, overlap: bool
) -> AbstractContextManager[None]:
    """Run a decode round without SGLang's copy of the batch's fields: our worker changes none of them.

    The copy, a hundred fields out and in again, costs 0.1 ms a round. An overlapped loop needs it all the same, to keep
    the round's tensors alive.

    Args:
        original: SGLang's context manager around one forward.
        scheduler: SGLang's.
        batch: the `ScheduleBatch` that runs.
        overlap: whether the loop is overlapped.
    """
    if overlap or not isinstance(batch.spec_info, DlmRoundState) or not batch.forward_mode.is_decode():
        return original(scheduler, batch, overlap=overlap)
    return nullcontext()


def tokens_for_next_round(original: Any, batch: Any, requests: list[Any], page_size: int) -> int:
    """KV tokens that the next round cannot do without; SGLang retracts requests when they are not there.

    While the pool holds two blocks for everybody the upper bound answers, without a look at each request.
    """
    if not isinstance(batch.spec_info, DlmRoundState):
        return int(original(batch, requests, page_size))
    at_most = len(requests) * (2 * batch.spec_info.max_block_length + page_size)
    if batch.token_to_kv_pool_allocator.available_size() >= at_most:
        return at_most
    total = 0
    for req in requests:
        reach = req.kv.kv_committed_len + req.dlm.num_pending_tokens + req.dlm.width
        total += max(0, _whole_pages(reach, req.dlm.context_length, page_size) - req.kv.kv_allocated_len)
    return total


def _whole_pages(wanted_len: int, context_length: int, page_size: int) -> int:
    """Slots that hold `wanted_len` tokens: whole pages, not past the context end."""
    return -(-min(wanted_len, context_length) // page_size) * page_size


def _allocate(batch: Any, rows: list[tuple[Any, int, int]], lookahead: int) -> None:
    """Give the rows `(req, row, reach)` that lack slots theirs."""
    reqs = [req for req, _, _ in rows]
    page_size = batch.token_to_kv_pool_allocator.page_size
    current = torch.tensor([req.kv.kv_allocated_len for req in reqs], dtype=torch.int32)
    needed = torch.tensor(
        [_whole_pages(reach + lookahead, req.dlm.context_length, page_size) for req, _, reach in rows],
        dtype=torch.int32,
    )
    slots = batch.req_pool_indices
    if len(rows) < len(batch.reqs):
        slots = slots[torch.tensor([row for _, row, _ in rows]).to(batch.device, non_blocking=True)]
    alloc_for_spec_decode(
        batch.tree_cache,
        batch.req_to_token_pool,
        reqs=reqs,
        req_pool_indices=slots,
        cur_kv_lens=current.to(batch.device, non_blocking=True),
        cur_kv_lens_cpu=current,
        nxt_kv_lens=needed.to(batch.device, non_blocking=True),
        nxt_kv_lens_cpu=needed,
        num_needed_tokens=int((needed - current).sum()),
        batch=batch,
    )
