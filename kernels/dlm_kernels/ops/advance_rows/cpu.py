"""The advance of a round's rows in numpy: a round on a CPU is many small operations, and torch's cost most to call.

The arithmetic is the reference's, step by step; tests hold both to each other and to a loop.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm_kernels.ops.advance_rows import reference
from dlm_kernels.ops.advance_rows.reference import DENOISE, NO_HINTS, AdvancedRows, RowHints, RowState
from dlm_kernels.ops.unmask_select.reference import LEAST_SURE

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float32 | np.float64]
_PRECISIONS = (torch.float32, torch.float64)


class _Rows(NamedTuple):
    """State of the round's rows, gathered: canvas and masks `[R, L]`, stop ids `[R, E]`, the others `[R]`."""

    canvas: Ints
    is_masked: Flags
    stop_ids: Ints
    length: Ints
    step: Ints
    remaining: Ints
    block_length: Ints
    max_steps: Ints
    accepts_whole: Flags
    is_seeded: Ints
    threshold: Floats
    is_denoise: Flags


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
    if confidence is not None and confidence.dtype not in _PRECISIONS:
        return reference.advance_rows(state, slots, seq_lens, chosen, confidence, is_strict=is_strict, hints=hints)
    ids = chosen.numpy()
    if hints.is_autoregressive:
        return _advance_single_tokens(state, slots, seq_lens, chosen, ids)
    width = ids.shape[1]
    index, begins = slots.numpy(), seq_lens.numpy()
    rows = _gather(state, index, width, hints.num_stop_ids)
    offsets = np.arange(width)
    filled = rows.is_masked if confidence is None else _select(rows, confidence.numpy(), is_strict)
    canvas = np.where(filled, ids, rows.canvas)
    still_masked = rows.is_masked & ~filled
    if hints.accepts_whole_blocks:
        is_filled, ends_request = _outcome(rows, canvas, still_masked, offsets)
    else:
        is_filled, ends_request = _first(still_masked) == width, None
    token_ids, accept_lens, seed_ids = _emission(rows, canvas, ids, ends_request, offsets)
    if rows.stop_ids.shape[1] > 0:
        accept_lens = np.minimum(accept_lens, _first(_is_stop(rows, token_ids)) + 1)
    accept_lens = np.minimum(accept_lens, np.maximum(rows.remaining, 0))
    new_seq_lens = begins + accept_lens

    # What a row that keeps its block writes, and what a row that begins a new one writes.
    length = np.minimum(rows.block_length, state.context_length - new_seq_lens)
    is_later = offsets >= rows.is_seeded[:, None]
    keep = rows.is_denoise
    progress = np.empty((len(index), 4), dtype=np.int64)
    progress[:, 0] = np.where(keep, rows.length, length)
    progress[:, 1] = np.where(keep, is_filled, length <= rows.is_seeded)
    progress[:, 2] = np.where(keep, rows.step + 1, 0)
    progress[:, 3] = rows.remaining - accept_lens
    keep = keep[:, None]
    fresh_canvas = np.where(is_later, state.mask_token_id, seed_ids[:, None])
    state.canvas.numpy()[index, :width] = np.where(keep, canvas, fresh_canvas)
    state.is_masked.numpy()[index, :width] = np.where(keep, still_masked, is_later & (offsets < length[:, None]))
    state.progress.numpy()[index] = progress
    return AdvancedRows(*map(torch.from_numpy, (token_ids, accept_lens, new_seq_lens, rows.is_denoise)))


def _gather(state: RowState, index: Ints, width: int, num_stop_ids: int | None) -> _Rows:
    length, phase, step, remaining = state.progress.numpy().take(index, axis=0).T
    block_length, max_steps, accepts_whole, is_seeded = state.policy_ints.numpy().take(index, axis=0)[:, :4].T
    return _Rows(
        state.canvas.numpy().take(index, axis=0)[:, :width],
        state.is_masked.numpy().take(index, axis=0)[:, :width],
        state.stop_ids.numpy()[index, :num_stop_ids],
        length,
        step,
        remaining,
        block_length,
        max_steps,
        accepts_whole != 0,
        is_seeded,
        state.policy_floats.numpy()[index, 0],
        phase == DENOISE,
    )


def _select(rows: _Rows, confidence: Floats, is_strict: bool) -> Flags:
    """`unmask_select` of each row's step, with its quota and whether it is the last: `[R, L]` bool."""
    ranked = np.where(np.isnan(confidence), LEAST_SURE, confidence)
    ranked[~rows.is_masked] = -np.inf
    sure, threshold = confidence.astype(np.float32, copy=False), rows.threshold[:, None]
    selected = sure > threshold if is_strict else sure >= threshold
    # A step fills at least the position that the model is surest of.
    selected[np.arange(len(ranked)), ranked.argmax(axis=1)] = True
    by_schedule = np.isnan(rows.threshold)
    if by_schedule.any():
        num_masks = rows.length - rows.is_seeded
        quota = num_masks // rows.max_steps + (rows.step < num_masks % rows.max_steps)
        order = (-ranked).argsort(axis=1, kind="stable")
        by_rank = np.empty_like(selected)
        np.put_along_axis(by_rank, order, np.arange(order.shape[1]) < quota[:, None], axis=1)
        selected = np.where(by_schedule[:, None], by_rank, selected)
    fill_all = rows.step + 1 >= rows.max_steps
    result: Flags = rows.is_masked & (selected | fill_all[:, None])
    return result


def _is_stop(rows: _Rows, token_ids: Ints) -> Flags:
    result: Flags = (token_ids[:, :, None] == rows.stop_ids[:, None, :]).any(axis=2)
    return result


def _first(flags: Flags) -> Ints:
    """The first position of each row that is set, or the rows' width: `[R]`."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1), flags.shape[1])


def _outcome(rows: _Rows, canvas: Ints, still_masked: Flags, offsets: Ints) -> tuple[Flags, Flags]:
    """Whether each block is done, and whether it is its request's last: two `[R]` bool."""
    width = canvas.shape[1]
    is_new = (offsets < rows.length[:, None]) & (offsets >= rows.is_seeded[:, None])
    first_stop = _first(_is_stop(rows, canvas) & is_new & ~still_masked)
    first_mask = _first(still_masked)
    has_no_mask = first_mask == width
    is_frozen = has_no_mask | (first_stop < first_mask)
    reaches_limit = rows.length - rows.is_seeded >= rows.remaining
    ends_request = is_frozen & ((first_stop < width) | reaches_limit) & rows.accepts_whole
    return np.where(rows.accepts_whole, is_frozen, has_no_mask), ends_request


def _emission(
    rows: _Rows, canvas: Ints, chosen: Ints, ends_request: Flags | None, offsets: Ints
) -> tuple[Ints, Ints, Ints]:
    """Token ids `[R, L]`, how many of them count before stops and limits `[R]`, and next seeds `[R]`."""
    each = np.arange(len(chosen))
    # Past the last draft nothing agrees, so there is always a first.
    is_wrong = offsets >= rows.length[:, None] - 1
    is_wrong[:, -1] = True
    is_wrong[:, :-1] |= canvas[:, 1:] != chosen[:, :-1]
    num_correct_drafts = is_wrong.argmax(axis=1)
    verified_lens = np.where(rows.is_denoise, 0, num_correct_drafts + 1)
    bonus_ids = chosen[each, num_correct_drafts]
    if ends_request is None:
        return chosen, verified_lens, bonus_ids
    last = np.maximum(rows.length, 1) - 1
    next_seed = chosen[each, last]
    # A whole seeded block emits what follows its (already emitted) seed, then the next seed.
    shifted = np.empty_like(canvas)
    shifted[:, :-1], shifted[:, -1] = canvas[:, 1:], canvas[:, 0]
    shifted[each, last] = next_seed
    whole_ids = np.where(rows.is_seeded[:, None] != 0, shifted, canvas)
    # Without its commit a seeded block has no next seed to emit.
    uncommitted_lens = np.where(ends_request, rows.length - rows.is_seeded, 0)
    whole_lens = np.where(rows.is_denoise, uncommitted_lens, rows.length)
    return (
        np.where(rows.accepts_whole[:, None], whole_ids, chosen),
        np.where(rows.accepts_whole, whole_lens, verified_lens),
        np.where(rows.accepts_whole, next_seed, bonus_ids),
    )


def _advance_single_tokens(state: RowState, slots: Tensor, seq_lens: Tensor, chosen: Tensor, ids: Ints) -> AdvancedRows:
    """One token a row, no block to lay out."""
    index, remaining_of_slot = slots.numpy(), state.progress.numpy()[:, -1]
    remaining = remaining_of_slot.take(index)
    accept_lens = (remaining > 0).astype(np.int64)
    state.canvas.numpy()[index, 0] = ids[:, 0]
    remaining_of_slot[index] = remaining - accept_lens
    new_seq_lens, is_denoise = seq_lens.numpy() + accept_lens, np.zeros(len(index), dtype=np.bool_)
    return AdvancedRows(chosen, *map(torch.from_numpy, (accept_lens, new_seq_lens, is_denoise)))
