"""What a decode round hands to SGLang: the state between rounds, the metadata of one forward, KV slots."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.allocation import alloc_for_spec_decode
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType


class DlmRoundState(SpecInput):
    """State between rounds. All of it lives in `BlockState`, by request slot; nothing to filter or merge.

    Attributes:
        max_block_length: longest block of any row, for bounds.
    """

    num_tokens_per_req = 1
    num_tokens_for_logprob_per_req = 1
    future_indices: torch.Tensor | None = None

    def __init__(self, max_block_length: int) -> None:
        super().__init__(SpecInputType.UNO_STATE)
        self.max_block_length = max_block_length

    def filter_batch(self, new_indices: torch.Tensor, new_indices_cpu: list[int] | None = None) -> None:
        """Follow the batch when requests leave it."""

    def merge_batch(self, other: DlmRoundState) -> None:
        """Follow the batch when another joins it."""


class DlmForwardInput(SpecInput):
    """Metadata of one mixed forward.

    Attributes:
        positions: `[T]` int64.
        kv_limit: `[T]` int64, keys at row positions below it are visible.
        row_lens, kv_lens: R host lengths of queries and of keys (queries included).
        draft_rows: `[T]` float32, 1 where the drafter adapter applies; None where it cannot.
    """

    capture_hidden_mode = CaptureHiddenMode.NULL

    def __init__(
        self,
        positions: torch.Tensor,
        kv_limit: torch.Tensor,
        row_lens: list[int],
        kv_lens: list[int],
        draft_rows: torch.Tensor | None,
    ) -> None:
        super().__init__(SpecInputType.UNO_VERIFY)
        self.positions = positions
        self.kv_limit = kv_limit
        self.row_lens = row_lens
        self.kv_lens = kv_lens
        self.draft_rows = draft_rows


# Slots taken at once beyond a row's block while the pool has room: an allocation per token costs more than it.
LOOKAHEAD = 16


def prepare_decode_round(original: Any, batch: Any) -> None:
    """Reserve KV slots for each row's block; other algorithms keep SGLang's own preparation.

    SGLang would reserve twice the server's largest block for every row, also for autoregressive ones, and
    past the request table's width at the context end. A row needs its own block, at most up to the context end.

    Args:
        original: SGLang's function, called for batches that are not ours.
        batch: the `ScheduleBatch` about to run a decode round.
    """
    if not isinstance(batch.spec_info, DlmRoundState):
        original(batch)
        return
    allocator = batch.token_to_kv_pool_allocator
    page_size = allocator.page_size
    committed, rows, num_needed = [], [], 0
    for row, req in enumerate(batch.reqs):
        req.decode_batch_idx += 1
        kv = req.kv
        committed.append(kv.kv_committed_len)
        # Most rows hold their block already: only the others pay for the exact count.
        if kv.kv_allocated_len < kv.kv_committed_len + req.dlm.policy.block_length:
            missing = _wanted_len(req, page_size) - kv.kv_allocated_len
            if missing > 0:
                rows.append(row)
                num_needed += missing
    batch.seq_lens_cpu = torch.tensor(committed, dtype=torch.int64)
    batch.seq_lens_sum = sum(committed)
    if rows:
        has_room = allocator.available_size() >= num_needed + LOOKAHEAD * len(rows)
        _allocate(batch, rows, LOOKAHEAD if has_room else 0)


def tokens_for_next_round(original: Any, batch: Any, requests: list[Any], page_size: int) -> int:
    """KV tokens that the next round cannot do without; SGLang retracts requests when they are not there.

    While the pool holds a block for everybody the upper bound answers, without a look at each request.
    """
    if not isinstance(batch.spec_info, DlmRoundState):
        return int(original(batch, requests, page_size))
    at_most = len(requests) * (batch.spec_info.max_block_length + page_size)
    if batch.token_to_kv_pool_allocator.available_size() >= at_most:
        return at_most
    return sum(max(0, _wanted_len(req, page_size) - req.kv.kv_allocated_len) for req in requests)


def _wanted_len(req: Any, page_size: int, lookahead: int = 0) -> int:
    """Slots that `req` should hold: committed tokens and its block, whole pages, not past the context end."""
    wanted = req.kv.kv_committed_len + req.dlm.policy.block_length + lookahead
    return -(-min(wanted, req.dlm.context_length) // page_size) * page_size


def _allocate(batch: Any, rows: list[int], lookahead: int) -> None:
    """Give the rows that lack slots theirs."""
    reqs = [batch.reqs[row] for row in rows]
    page_size = batch.token_to_kv_pool_allocator.page_size
    current = torch.tensor([req.kv.kv_allocated_len for req in reqs], dtype=torch.int32)
    needed = torch.tensor([_wanted_len(req, page_size, lookahead) for req in reqs], dtype=torch.int32)
    is_whole_batch = len(rows) == len(batch.reqs)
    index = torch.tensor(rows).to(batch.device, non_blocking=True)
    alloc_for_spec_decode(
        batch.tree_cache,
        batch.req_to_token_pool,
        reqs=reqs,
        req_pool_indices=batch.req_pool_indices if is_whole_batch else batch.req_pool_indices[index],
        cur_kv_lens=current.to(batch.device, non_blocking=True),
        cur_kv_lens_cpu=current,
        nxt_kv_lens=needed.to(batch.device, non_blocking=True),
        nxt_kv_lens_cpu=needed,
        num_needed_tokens=int((needed - current).sum()),
        batch=batch,
    )
