"""One program per row: unmask, accept, emit and begin the next block, on state that is indexed by slot."""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.ops.unmask_select.kernel import block_outcome, filled_positions, is_stop_token, quota_of


@triton.jit
def _canvas_at(
    offsets,
    block,
    chosen_row_ptr,
    confidence_row_ptr,
    confidence_threshold,
    quota,
    fill_all,
    BLOCK_L: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_STRICT: tl.constexpr,
):
    """Token ids after this step at `offsets` of a block, and whether each is masked still.

    `block` is the row's canvas_ptr, is_masked_ptr and width.
    """
    canvas_ptr, is_masked_ptr, width = block
    in_block = offsets < width
    is_masked = tl.load(is_masked_ptr + offsets, mask=in_block, other=0) != 0
    if confidence_row_ptr is not None:
        filled = filled_positions(
            confidence_row_ptr,
            is_masked_ptr,
            offsets,
            width,
            is_masked,
            confidence_threshold,
            quota,
            fill_all,
            BLOCK_L,
            CHUNK,
            IS_STRICT,
        )
    else:
        filled = is_masked
    canvas = tl.load(canvas_ptr + offsets, mask=in_block, other=-2)
    canvas = tl.where(filled, tl.load(chosen_row_ptr + offsets, mask=filled, other=-2), canvas)
    return canvas, is_masked & (filled == 0)


@triton.jit(do_not_specialize=["width", "num_stops", "mask_token_id", "context_length"])
def advance_rows_kernel(
    canvas_ptr,
    is_masked_ptr,
    progress_ptr,
    policy_ints_ptr,
    policy_floats_ptr,
    stop_ids_ptr,
    slots_ptr,
    seq_lens_ptr,
    chosen_ptr,
    confidence_ptr,
    token_ids_ptr,
    accept_lens_ptr,
    new_seq_lens_ptr,
    is_denoise_ptr,
    canvas_stride_slot,
    is_masked_stride_slot,
    progress_stride_slot,
    policy_ints_stride_slot,
    policy_floats_stride_slot,
    stop_ids_stride_slot,
    width,
    num_stops,
    mask_token_id,
    context_length,
    BLOCK_L: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_STRICT: tl.constexpr,
):
    """One program per row; `chosen`, `confidence` and `token_ids` are contiguous `[R, width]`."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    offsets = tl.arange(0, BLOCK_L)
    in_block = offsets < width
    progress_ptr += slot * progress_stride_slot
    length, step = tl.load(progress_ptr), tl.load(progress_ptr + 2)
    is_denoise = tl.load(progress_ptr + 1) == 0
    remaining = tl.load(progress_ptr + 3)
    policy_ints_ptr += slot * policy_ints_stride_slot
    block_length, max_steps = tl.load(policy_ints_ptr), tl.load(policy_ints_ptr + 1)
    accepts_whole = tl.load(policy_ints_ptr + 2) != 0
    is_seeded = tl.load(policy_ints_ptr + 3)
    confidence_threshold = tl.load(policy_floats_ptr + slot * policy_floats_stride_slot)
    stop_ids_ptr += slot * stop_ids_stride_slot
    canvas_ptr += slot * canvas_stride_slot
    is_masked_ptr += slot * is_masked_stride_slot
    block = (canvas_ptr, is_masked_ptr, width)
    chosen_ptr += row * width
    if confidence_ptr is not None:
        confidence_ptr += row * width
    quota = quota_of(length, is_seeded, step, max_steps)
    fill_all = step + 1 >= max_steps

    canvas, still_masked = _canvas_at(
        offsets, block, chosen_ptr, confidence_ptr, confidence_threshold, quota, fill_all, BLOCK_L, CHUNK, IS_STRICT
    )
    # The block one position on, for the drafts that follow each target and for what follows a seed.
    following = tl.where(offsets + 1 < width, offsets + 1, 0)
    next_canvas, _ = _canvas_at(
        following, block, chosen_ptr, confidence_ptr, confidence_threshold, quota, fill_all, BLOCK_L, CHUNK, IS_STRICT
    )
    is_filled, ends_request = block_outcome(
        canvas,
        still_masked,
        offsets,
        length,
        is_seeded,
        remaining,
        accepts_whole,
        stop_ids_ptr,
        num_stops,
        width,
        BLOCK_L,
    )

    chosen = tl.load(chosen_ptr + offsets, mask=in_block, other=-3)
    is_wrong = (next_canvas != chosen) | (offsets >= length - 1)
    num_correct = tl.min(tl.where(is_wrong, offsets, BLOCK_L), axis=0)
    last = tl.maximum(length - 1, 0)
    next_seed = tl.load(chosen_ptr + last)
    seed_id = tl.where(accepts_whole, next_seed, tl.load(chosen_ptr + num_correct))
    whole_ids = tl.where(is_seeded != 0, tl.where(offsets == last, next_seed, next_canvas), canvas)
    token_ids = tl.where(accepts_whole, whole_ids, chosen)
    uncommitted = tl.where(ends_request, length - is_seeded, 0)
    committed = tl.where(accepts_whole, length, num_correct.to(tl.int64) + 1)
    accept_len = tl.where(is_denoise, uncommitted, committed)
    is_stop = is_stop_token(token_ids, stop_ids_ptr, num_stops, BLOCK_L) & in_block
    first_stop = tl.min(tl.where(is_stop, offsets, width), axis=0)
    accept_len = tl.minimum(tl.minimum(accept_len, first_stop + 1), tl.maximum(remaining, 0))
    new_seq_len = tl.load(seq_lens_ptr + row).to(tl.int64) + accept_len
    tl.store(token_ids_ptr + row * width + offsets, token_ids, mask=in_block)
    tl.store(accept_lens_ptr + row, accept_len)
    tl.store(new_seq_lens_ptr + row, new_seq_len)
    tl.store(is_denoise_ptr + row, is_denoise)

    new_length = tl.minimum(block_length, context_length - new_seq_len)
    fresh_masked = (offsets >= is_seeded) & (offsets < new_length)
    fresh_canvas = tl.where(offsets >= is_seeded, mask_token_id, seed_id)
    # Other lanes still read the block that is overwritten here.
    tl.debug_barrier()
    tl.store(canvas_ptr + offsets, tl.where(is_denoise, canvas, fresh_canvas), mask=in_block)
    tl.store(is_masked_ptr + offsets, tl.where(is_denoise, still_masked, fresh_masked), mask=in_block)
    fresh_phase = (new_length <= is_seeded).to(tl.int64)
    tl.store(progress_ptr, tl.where(is_denoise, length, new_length))
    tl.store(progress_ptr + 1, tl.where(is_denoise, is_filled.to(tl.int64), fresh_phase))
    tl.store(progress_ptr + 2, tl.where(is_denoise, step + 1, 0))
    tl.store(progress_ptr + 3, remaining - accept_len)
