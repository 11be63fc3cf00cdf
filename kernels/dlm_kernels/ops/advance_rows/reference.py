"""Plain-torch advance of a round's rows on state that is indexed by request slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlm_kernels.ops.accept_prefix.reference import accept_prefix
from dlm_kernels.ops.unmask_select.reference import unmask_select

DENOISE = 0


@dataclass(frozen=True)
class RowState:
    """State and policies of `P` request slots.

    Attributes:
        canvas: `[P, W]` int64, token ids of the blocks; changed in place.
        is_masked: `[P, W]` bool, False past the block; changed in place.
        progress: `[P, 4]` int64, columns length, phase (0 denoise, 1 commit), step, remaining; changed in place.
        policy_ints: `[P, >= 4]` int64, columns block_length, max_denoising_steps, accepts_whole_block, is_seeded.
        policy_floats: `[P, >= 1]` float32, column confidence_threshold, NaN for the even schedule.
        stop_ids: `[P, E]` int64, -1 where unused.
        mask_token_id: what an unfilled position holds.
        context_length: a block ends there.
    """

    canvas: Tensor
    is_masked: Tensor
    progress: Tensor
    policy_ints: Tensor
    policy_floats: Tensor
    stop_ids: Tensor
    mask_token_id: int
    context_length: int


@dataclass(frozen=True)
class RowHints:
    """What the host knows of a round's rows without reading them; it saves a CPU work, never changes results.

    Attributes:
        accepts_whole_blocks: some row may accept its block whole.
        num_stop_ids: no row has more stop ids than these, which come first; None where that is not known.
        is_autoregressive: every row has blocks of one seeded position.
    """

    accepts_whole_blocks: bool = True
    num_stop_ids: int | None = None
    is_autoregressive: bool = False


NO_HINTS = RowHints()


class AdvancedRows(NamedTuple):
    """What a round emitted.

    Attributes:
        token_ids: `[R, L]` int64, the first `accept_lens` of each row count.
        accept_lens: `[R]` int64, new tokens per row, 0 for a row that goes on denoising.
        new_seq_lens: `[R]` int64, tokens before the next block.
        is_denoise: `[R]` bool, the round was a denoise forward for the row.
    """

    token_ids: Tensor
    accept_lens: Tensor
    new_seq_lens: Tensor
    is_denoise: Tensor


class _Rows(NamedTuple):
    """State of the round's rows, gathered: `[R, L]` and `[R]`."""

    canvas: Tensor
    is_masked: Tensor
    stop_ids: Tensor
    length: Tensor
    step: Tensor
    remaining: Tensor
    block_length: Tensor
    max_steps: Tensor
    accepts_whole: Tensor
    is_seeded: Tensor
    threshold: Tensor
    is_denoise: Tensor


def advance_rows(
    state: RowState,
    slots: Tensor,
    seq_lens: Tensor,
    chosen: Tensor,
    confidence: Tensor | None,
    *,
    is_strict: bool = False,
    hints: RowHints = NO_HINTS,
) -> AdvancedRows:
    """Advance every row by one round.

    Args and result: see `dlm_kernels.ops.advance_rows.op.advance_rows`.
    """
    width = chosen.shape[1]
    rows = _gather(state, slots, width)
    offsets = torch.arange(width, device=slots.device)
    filled = rows.is_masked
    if confidence is not None:
        num_masks = rows.length - rows.is_seeded
        quota = num_masks // rows.max_steps + (rows.step < num_masks % rows.max_steps)
        fill_all = rows.step + 1 >= rows.max_steps
        filled = unmask_select(rows.is_masked, confidence, rows.threshold, quota, fill_all, is_strict=is_strict)
    canvas = torch.where(filled, chosen, rows.canvas)
    still_masked = rows.is_masked & ~filled
    is_filled, ends_request = _outcome(rows, canvas, still_masked, offsets)
    token_ids, accept_lens, seed_ids = _emission(rows, canvas, chosen, ends_request)
    first_stop = torch.where(_is_stop(rows, token_ids), offsets, width).amin(dim=1)
    accept_lens = torch.minimum(accept_lens, first_stop + 1)
    accept_lens = torch.minimum(accept_lens, rows.remaining.clamp(min=0))
    new_seq_lens = seq_lens + accept_lens

    # What a row that keeps its block writes, and what a row that begins a new one writes.
    length = torch.minimum(rows.block_length, state.context_length - new_seq_lens)
    is_later = offsets >= rows.is_seeded[:, None]
    fresh_canvas = torch.where(is_later, state.mask_token_id, seed_ids[:, None])
    fresh_masked = is_later & (offsets < length[:, None])
    remaining = rows.remaining - accept_lens
    fresh = torch.stack((length, (length <= rows.is_seeded).long(), torch.zeros_like(length), remaining), dim=1)
    kept = torch.stack((rows.length, is_filled.long(), rows.step + 1, remaining), dim=1)
    keep = rows.is_denoise[:, None]
    state.canvas[slots, :width] = torch.where(keep, canvas, fresh_canvas)
    state.is_masked[slots, :width] = torch.where(keep, still_masked, fresh_masked)
    state.progress[slots] = torch.where(keep, kept, fresh)
    return AdvancedRows(token_ids, accept_lens, new_seq_lens, rows.is_denoise)


def _gather(state: RowState, slots: Tensor, width: int) -> _Rows:
    length, phase, step, remaining = state.progress[slots].unbind(1)
    block_length, max_steps, accepts_whole, is_seeded = state.policy_ints[slots, :4].unbind(1)
    return _Rows(
        state.canvas[slots, :width],
        state.is_masked[slots, :width],
        state.stop_ids[slots],
        length,
        step,
        remaining,
        block_length,
        max_steps,
        accepts_whole.bool(),
        is_seeded,
        state.policy_floats[slots, 0],
        phase == DENOISE,
    )


def _is_stop(rows: _Rows, token_ids: Tensor) -> Tensor:
    return (token_ids[:, :, None] == rows.stop_ids[:, None, :]).any(dim=2)


def _outcome(rows: _Rows, canvas: Tensor, still_masked: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each block is done, and whether it is its request's last: two `[R]` bool."""
    width = canvas.shape[1]
    is_new = (offsets < rows.length[:, None]) & (offsets >= rows.is_seeded[:, None])
    is_stop = _is_stop(rows, canvas) & is_new & ~still_masked
    first_stop = torch.where(is_stop, offsets, width).amin(dim=1)
    first_mask = torch.where(still_masked, offsets, width).amin(dim=1)
    has_no_mask = first_mask == width
    is_frozen = has_no_mask | (first_stop < first_mask)
    reaches_limit = rows.length - rows.is_seeded >= rows.remaining
    ends_request = is_frozen & ((first_stop < width) | reaches_limit) & rows.accepts_whole
    return torch.where(rows.accepts_whole, is_frozen, has_no_mask), ends_request


def _emission(rows: _Rows, canvas: Tensor, chosen: Tensor, ends_request: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids `[R, L]`, how many of them count before stops and limits `[R]`, and next seeds `[R]`."""
    num_correct_drafts, bonus_ids = accept_prefix(canvas[:, 1:], chosen, rows.length - 1)
    verified_lens = torch.where(rows.is_denoise, 0, num_correct_drafts + 1)
    last = (rows.length - 1).clamp(min=0)[:, None]
    next_seed = chosen.gather(1, last)
    # A whole seeded block emits what follows its (already emitted) seed, then the next seed.
    shifted = canvas.roll(-1, dims=1).scatter(1, last, next_seed)
    whole_ids = torch.where(rows.is_seeded[:, None].bool(), shifted, canvas)
    # Without its commit a seeded block has no next seed to emit.
    uncommitted_lens = torch.where(ends_request, rows.length - rows.is_seeded, 0)
    whole_lens = torch.where(rows.is_denoise, uncommitted_lens, rows.length)
    return (
        torch.where(rows.accepts_whole[:, None], whole_ids, chosen),
        torch.where(rows.accepts_whole, whole_lens, verified_lens),
        torch.where(rows.accepts_whole, next_seed[:, 0], bonus_ids),
    )
