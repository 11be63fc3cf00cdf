"""One program per request: equality of drafts and targets; rejection sampling with residual."""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.ops.choose_token.kernel import scan_split, winner_of
from dlm_kernels.ops.sample_token.kernel import (
    FLOOR,
    LOG2E,
    filter_limits,
    first_crossing,
    kept_mass,
    kept_weights,
    no_limits,
    order_key,
)


@triton.jit
def count_correct(draft_ids, target_ids, offsets, num_drafts, BLOCK_L: tl.constexpr):
    """Length of the leading run of drafts `[BLOCK_L]` that equal their targets."""
    is_wrong = (draft_ids != target_ids) | (offsets >= num_drafts)
    return tl.min(tl.where(is_wrong, offsets, BLOCK_L), axis=0)


@triton.jit(do_not_specialize=["draft_stride_row", "target_stride_row"])
def accept_prefix_kernel(
    draft_ids_ptr,
    target_ids_ptr,
    num_drafts_ptr,
    num_correct_drafts_ptr,
    bonus_ids_ptr,
    draft_stride_row,
    target_stride_row,
    BLOCK_L: tl.constexpr,
):
    """One program per row; BLOCK_L exceeds the number of drafts, so that a run always ends."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_L)
    num_drafts = tl.load(num_drafts_ptr + row)
    is_draft = offsets < num_drafts
    draft_ids = tl.load(draft_ids_ptr + row * draft_stride_row + offsets, mask=is_draft, other=0)
    target_ids = tl.load(target_ids_ptr + row * target_stride_row + offsets, mask=is_draft, other=0)
    num_correct = count_correct(draft_ids, target_ids, offsets, num_drafts, BLOCK_L)
    tl.store(num_correct_drafts_ptr + row, num_correct.to(tl.int64))
    tl.store(bonus_ids_ptr + row, tl.load(target_ids_ptr + row * target_stride_row + num_correct))


@triton.jit(do_not_specialize=["excluded_token_id", "length"])
def verify_rows_kernel(
    draft_ids_ptr,
    draft_probs_ptr,
    logits_ptr,
    logits_stride_row,
    first_row_ptr,
    num_drafts_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    accept_uniform_ptr,
    row_max_ptr,
    pivot_ptr,
    last_tie_ptr,
    mass_ptr,
    best_id_ptr,
    is_accepted_ptr,
    vocab_size,
    excluded_token_id,
    length,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEY_SHIFT: tl.constexpr,
    HAS_PROBS: tl.constexpr,
):
    """One program per (request, verifier row): what the row may draw, and whether its draft is accepted.

    The outputs are `[R, L + 1]`, `is_accepted` `[R, L]`; rows past the last draft's successor are left alone.
    """
    request = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1)
    num_drafts = tl.load(num_drafts_ptr + request)
    if index > num_drafts:
        return
    row_ptr = logits_ptr + (tl.load(first_row_ptr + request) + index) * logits_stride_row
    row = (row_ptr, vocab_size, excluded_token_id)
    temperature = tl.load(temperature_ptr + request).to(tl.float32)
    scale = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    top_k = tl.load(top_k_ptr + request).to(tl.int64)
    top_p = tl.load(top_p_ptr + request).to(tl.float32)
    min_p = tl.load(min_p_ptr + request).to(tl.float32)
    best, _others, _own, best_tile, masses = scan_split(
        row_ptr, vocab_size, excluded_token_id, scale, GROUPS, WIDTH, False, True
    )
    row_max, _winner, _offsets, _group, best_id = winner_of(
        row_ptr, vocab_size, excluded_token_id, best, best_tile, GROUPS, WIDTH
    )
    reference = tl.maximum(best * scale, FLOOR)
    mass = tl.sum((masses * tl.exp2(reference - tl.maximum(row_max * scale, FLOOR))).to(tl.float64), axis=0)
    pivot, last_tie = no_limits(row)
    if (temperature <= 0.0) | (top_k == 1) | ((top_p < 1.0) & (top_p.to(tl.float64) * mass <= 1.0)):
        pivot = order_key(tl.where(row_max == 0.0, 0.0, row_max), KEY_SHIFT).to(tl.int64)
        last_tie = best_id
    else:
        if (row_max > FLOOR) & (((top_k >= 1) & (top_k < vocab_size)) | (top_p < 1.0)):
            pivot, last_tie = filter_limits(row, row_max, scale, top_k, top_p, BLOCK_V, KEY_SHIFT)
    kept = (row_max, scale, pivot, last_tie, min_p)
    mass = kept_mass(row, kept, (row_ptr, 0.0, -1), 0, vocab_size, BLOCK_V, KEY_SHIFT, False)

    out = request * (length + 1) + index
    tl.store(row_max_ptr + out, row_max)
    tl.store(pivot_ptr + out, pivot)
    tl.store(last_tie_ptr + out, last_tie)
    tl.store(mass_ptr + out, mass)
    tl.store(best_id_ptr + out, best_id)
    if index < num_drafts:
        draft_id = tl.load(draft_ids_ptr + request * length + index)
        ids = draft_id + tl.arange(0, 1)
        weight = tl.sum(kept_weights(row, kept, (row_ptr, 0.0, -1), ids, KEY_SHIFT, False), axis=0)
        price = tl.load(accept_uniform_ptr + request * length + index)
        if HAS_PROBS:
            drafted = draft_probs_ptr + (request * length + index) * vocab_size + draft_id
            price = price * tl.load(drafted).to(tl.float64)
        tl.store(is_accepted_ptr + request * length + index, price * mass < weight)


@triton.jit(do_not_specialize=["excluded_token_id", "length"])
def accept_rejection_kernel(
    draft_ids_ptr,
    draft_probs_ptr,
    logits_ptr,
    logits_stride_row,
    first_row_ptr,
    num_drafts_ptr,
    temperature_ptr,
    min_p_ptr,
    uniform_ptr,
    row_max_ptr,
    pivot_ptr,
    last_tie_ptr,
    mass_ptr,
    best_id_ptr,
    is_accepted_ptr,
    num_correct_drafts_ptr,
    bonus_ids_ptr,
    vocab_size,
    excluded_token_id,
    length,
    BLOCK_L: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEY_SHIFT: tl.constexpr,
    HAS_PROBS: tl.constexpr,
):
    """One program per request: the accepted prefix, and a token from what the next row has left."""
    request = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK_L)
    num_drafts = tl.load(num_drafts_ptr + request)
    is_accepted = tl.load(is_accepted_ptr + request * length + offsets, mask=offsets < num_drafts, other=0) != 0
    num_correct = tl.min(tl.where(is_accepted, BLOCK_L, offsets), axis=0)
    out = request * (length + 1) + num_correct
    row_ptr = logits_ptr + (tl.load(first_row_ptr + request) + num_correct) * logits_stride_row
    row = (row_ptr, vocab_size, excluded_token_id)
    temperature = tl.load(temperature_ptr + request).to(tl.float32)
    scale = LOG2E / tl.where(temperature > 0.0, temperature, 1.0)
    min_p = tl.load(min_p_ptr + request).to(tl.float32)
    row_max = tl.load(row_max_ptr + out)
    kept = (row_max, scale, tl.load(pivot_ptr + out), tl.load(last_tie_ptr + out), min_p)
    total = tl.load(mass_ptr + out)
    draft_id = tl.full([], -1, tl.int64)
    if num_correct < num_drafts:
        draft_id = tl.load(draft_ids_ptr + request * length + num_correct)
    probs_ptr = row_ptr
    if HAS_PROBS:
        # The last row has no draft, so its pointer is not followed.
        probs_ptr = draft_probs_ptr + (request * length + num_correct) * vocab_size
    rejected = (probs_ptr, total, draft_id)
    mass = kept_mass(row, kept, rejected, 0, vocab_size, BLOCK_V, KEY_SHIFT, HAS_PROBS)
    if (mass <= 0.0) & (draft_id >= 0):
        # Rounding may reject where nothing is left: target and drafter are then the same.
        draft_id = tl.full([], -1, tl.int64)
        mass = total
    rejected = (probs_ptr, total, draft_id)
    token = tl.load(best_id_ptr + out)
    if mass > 0.0:
        target = tl.minimum(tl.load(uniform_ptr + request) * mass, mass * (1.0 - 1e-9))
        start = tl.full([], 0, tl.int32)
        token = first_crossing(row, kept, rejected, start, start + vocab_size, target, BLOCK_V, KEY_SHIFT, HAS_PROBS)
    tl.store(num_correct_drafts_ptr + request, num_correct.to(tl.int64))
    tl.store(bonus_ids_ptr + request, token.to(tl.int64))
