"""One program per request: which masks are filled, the block's new tokens, and whether it is done."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def filled_positions(
    confidence_ptr,
    is_masked_ptr,
    offsets,
    num_positions,
    is_masked,
    confidence_threshold,
    quota,
    fill_all,
    BLOCK_L: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_STRICT: tl.constexpr,
):
    """`[BLOCK_L]` bool: the masked positions of one row that this step fills.

    The rank of a position is the number of masked ones that are surer, or as sure and further left. The pointers
    are the row's; positions from `num_positions` on count as unmasked. The threshold is float32, rounded to the
    dtype of the confidence beforehand where that is narrower.
    """
    raw = tl.load(confidence_ptr + offsets, mask=is_masked, other=0.0)
    if raw.dtype.primitive_bitwidth < 32:
        raw = raw.to(tl.float32)
    compared = raw.to(tl.float32)
    sure = tl.where(raw != raw, -1.0, raw)
    rank = tl.zeros([BLOCK_L], tl.int32)
    for start in tl.static_range(0, BLOCK_L, CHUNK):
        others = start + tl.arange(0, CHUNK)
        rival = tl.load(is_masked_ptr + others, mask=others < num_positions, other=0) != 0
        rival_sure = tl.load(confidence_ptr + others, mask=rival, other=0.0).to(raw.dtype)
        rival_sure = tl.where(rival_sure != rival_sure, -1.0, rival_sure)
        is_before = (rival_sure[None, :] > sure[:, None]) | (
            (rival_sure[None, :] == sure[:, None]) & (others[None, :] < offsets[:, None])
        )  # [BLOCK_L, CHUNK]
        rank += tl.sum((is_before & rival[None, :]).to(tl.int32), axis=1)
    passes = compared > confidence_threshold if IS_STRICT else compared >= confidence_threshold
    # Nothing passes a threshold that is NaN; with one that is not, the best position is filled in any case.
    num_best = tl.where(confidence_threshold != confidence_threshold, quota, 1)
    num_best = tl.where(fill_all, BLOCK_L, num_best)
    return is_masked & (passes | (rank < num_best))


@triton.jit
def is_stop_token(token_ids, stop_ids_ptr, num_stops, BLOCK_L: tl.constexpr):
    """`[BLOCK_L]` bool: which tokens are among the row's stop ids."""
    is_stop = tl.zeros([BLOCK_L], tl.int32)
    for index in range(num_stops):
        is_stop |= (token_ids == tl.load(stop_ids_ptr + index)).to(tl.int32)
    return is_stop != 0


@triton.jit(do_not_specialize=["block_length"])
def unmask_select_kernel(
    is_masked_ptr,
    confidence_ptr,
    confidence_threshold_ptr,
    quota_ptr,
    fill_all_ptr,
    filled_ptr,
    block_length,
    BLOCK_L: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_STRICT: tl.constexpr,
):
    """One program per row of contiguous `[R, L]` tensors."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_L)
    start = row * block_length
    is_masked = tl.load(is_masked_ptr + start + offsets, mask=offsets < block_length, other=0) != 0
    filled = filled_positions(
        confidence_ptr + start,
        is_masked_ptr + start,
        offsets,
        block_length,
        is_masked,
        tl.load(confidence_threshold_ptr + row).to(tl.float32),
        tl.load(quota_ptr + row),
        tl.load(fill_all_ptr + row) != 0,
        BLOCK_L,
        CHUNK,
        IS_STRICT,
    )
    tl.store(filled_ptr + start + offsets, filled, mask=offsets < block_length)


@triton.jit
def quota_of(row_len, is_seeded, step, max_steps):
    """Positions that the even schedule fills in this step: masks spread over the steps, the remainder first."""
    num_masks = row_len - is_seeded
    return num_masks // max_steps + (step < num_masks % max_steps).to(tl.int64)


@triton.jit
def block_outcome(
    canvas,
    still_masked,
    offsets,
    row_len,
    is_seeded,
    remaining,
    accepts_whole,
    stop_ids_ptr,
    num_stops,
    block_length,
    BLOCK_L: tl.constexpr,
):
    """Whether the block is done and whether it is its request's last (two bool scalars)."""
    is_new = (offsets < row_len) & (offsets >= is_seeded)
    is_stop = is_stop_token(canvas, stop_ids_ptr, num_stops, BLOCK_L) & is_new & (still_masked == 0)
    first_stop = tl.min(tl.where(is_stop, offsets, block_length), axis=0)
    first_mask = tl.min(tl.where(still_masked, offsets, block_length), axis=0)
    has_no_mask = first_mask == block_length
    is_frozen = has_no_mask | (first_stop < first_mask)
    ends_request = is_frozen & ((first_stop < block_length) | (row_len - is_seeded >= remaining))
    # A stop token in a draft is no end: the verifier may want another.
    return (accepts_whole & is_frozen) | has_no_mask, ends_request & accepts_whole


@triton.jit(do_not_specialize=["block_length", "num_stops"])
def unmask_block_kernel(
    canvas_ptr,
    is_masked_ptr,
    chosen_ptr,
    confidence_ptr,
    row_lens_ptr,
    step_ptr,
    max_denoising_steps_ptr,
    confidence_threshold_ptr,
    is_seeded_ptr,
    accepts_whole_block_ptr,
    stop_ids_ptr,
    remaining_ptr,
    is_denoise_ptr,
    new_canvas_ptr,
    still_masked_ptr,
    is_filled_ptr,
    ends_request_ptr,
    block_length,
    num_stops,
    BLOCK_L: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_STRICT: tl.constexpr,
):
    """One program per request on contiguous `[R, L]`, `[R, E]` and `[R]` tensors."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_L)
    in_block = offsets < block_length
    start = row * block_length
    row_len = tl.load(row_lens_ptr + row).to(tl.int64)
    is_seeded = (tl.load(is_seeded_ptr + row) != 0).to(tl.int64)
    step = tl.load(step_ptr + row).to(tl.int64)
    max_steps = tl.load(max_denoising_steps_ptr + row).to(tl.int64)
    # Rows that commit have no position that could be filled.
    num_positions = tl.where(tl.load(is_denoise_ptr + row) != 0, row_len, 0)
    is_masked = tl.load(is_masked_ptr + start + offsets, mask=offsets < num_positions, other=0) != 0
    filled = filled_positions(
        confidence_ptr + start,
        is_masked_ptr + start,
        offsets,
        num_positions,
        is_masked,
        tl.load(confidence_threshold_ptr + row).to(tl.float32),
        quota_of(row_len, is_seeded, step, max_steps),
        step + 1 >= max_steps,
        BLOCK_L,
        CHUNK,
        IS_STRICT,
    )
    canvas = tl.load(canvas_ptr + start + offsets, mask=in_block, other=-2)
    canvas = tl.where(filled, tl.load(chosen_ptr + start + offsets, mask=filled, other=-2), canvas)
    still_masked = is_masked & (filled == 0)
    is_filled, ends_request = block_outcome(
        canvas,
        still_masked,
        offsets,
        row_len,
        is_seeded,
        tl.load(remaining_ptr + row).to(tl.int64),
        tl.load(accepts_whole_block_ptr + row) != 0,
        stop_ids_ptr + row * num_stops,
        num_stops,
        block_length,
        BLOCK_L,
    )
    tl.store(new_canvas_ptr + start + offsets, canvas, mask=in_block)
    tl.store(still_masked_ptr + start + offsets, still_masked, mask=in_block)
    tl.store(is_filled_ptr + row, is_filled)
    tl.store(ends_request_ptr + row, ends_request)
