"""The merge of a row's splits into its token, greedy or drawn, and its confidence."""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.ops.choose_token.kernel import NOWHERE
from dlm_kernels.ops.sample_token.kernel import FLOOR, LOG2E, filter_limits, first_crossing, kept_mass, no_limits


@triton.jit
def _draw(
    row,
    kept,
    filters,
    masses,
    best_id,
    uniform,
    split_length,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEY_SHIFT: tl.constexpr,
):
    """The token that `uniform` falls on.

    Args:
        row: see `load_allowed`.
        kept: row_max, scale, min_weight.
        filters: top_k, top_p.
        masses: `[BLOCK_S]` float64, shares of the splits relative to row_max.
        best_id: the likeliest token.
    """
    vocab_size = row[1]
    row_max, scale, min_weight = kept
    top_k, top_p = filters
    total = tl.sum(masses, axis=0)
    token = best_id
    # Often the likeliest token is all that the filters leave: the model is sure.
    if (top_k != 1) & ((top_p >= 1.0) | (top_p.to(tl.float64) * total > 1.0)):
        pivot, last_tie = no_limits(row)
        begin = tl.full([], 0, tl.int32)
        end = begin + vocab_size
        before = tl.full([], 0.0, tl.float64)
        has_filter = ((top_k >= 1) & (top_k < vocab_size)) | (top_p < 1.0) | (min_weight > 0.0)
        if has_filter:
            pivot, last_tie = filter_limits(row, row_max, scale, top_k, top_p, BLOCK_V, KEY_SHIFT)
        else:
            # Only the split that the number falls into is read again.
            splits = tl.arange(0, BLOCK_S)
            picked = tl.min(tl.where(tl.cumsum(masses, axis=0) > uniform * total, splits, BLOCK_S), axis=0)
            picked = tl.where(picked < BLOCK_S, picked, tl.max(tl.where(masses > 0.0, splits, 0), axis=0))
            before = tl.sum(tl.where(splits < picked, masses, 0.0), axis=0)
            begin = picked * split_length
            end = tl.minimum(begin + split_length, vocab_size)
        limits = (row_max, scale, pivot, last_tie, min_weight)
        nothing = (row[0], 0.0, -1)
        mass = kept_mass(row, limits, nothing, begin, end, BLOCK_V, KEY_SHIFT, False)
        total = tl.where(has_filter, mass, total)
        # The stored share of a split and its sum here differ by rounding: stay inside.
        target = tl.maximum(tl.minimum(uniform * total - before, mass * (1.0 - 1e-9)), 0.0)
        if mass > 0.0:
            token = first_crossing(row, limits, nothing, begin, end, target, BLOCK_V, KEY_SHIFT, False)
    return token


@triton.jit(do_not_specialize=["excluded_token_id", "num_splits"])
def choose_token_merge_kernel(
    logits_ptr,
    logits_stride_row,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    uniform_ptr,
    is_settled_ptr,
    needs_confidence_ptr,
    part_best_ptr,
    part_odds_ptr,
    part_mass_ptr,
    part_id_ptr,
    token_ids_ptr,
    confidence_ptr,
    vocab_size,
    excluded_token_id,
    split_length,
    num_splits,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    KEY_SHIFT: tl.constexpr,
    SUMS: tl.constexpr,
    COUNTS_EXCLUDED: tl.constexpr,
):
    """One program per row: the best of its splits or a draw, and its probability."""
    row = tl.program_id(0).to(tl.int64)
    if is_settled_ptr is not None:
        if tl.load(is_settled_ptr + row):
            tl.store(token_ids_ptr + row, tl.full([], 0, tl.int64))
            tl.store(confidence_ptr + row, 0.0)
            return
    splits = tl.arange(0, BLOCK_S)
    in_row = splits < num_splits
    parts = row * num_splits + splits
    best = tl.load(part_best_ptr + parts, mask=in_row, other=FLOOR)
    ids = tl.load(part_id_ptr + parts, mask=in_row, other=NOWHERE)
    top = tl.max(best, axis=0)
    best_id = tl.min(tl.where(best == top, ids, NOWHERE), axis=0)
    is_empty = top <= FLOOR
    row_ptr = logits_ptr + row * logits_stride_row
    token = best_id
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row).to(tl.float32)
        if (temperature > 0.0) & (not is_empty):
            scale = LOG2E / temperature
            masses = tl.load(part_mass_ptr + parts, mask=in_row, other=0.0).to(tl.float64)
            token = _draw(
                (row_ptr, vocab_size, excluded_token_id),
                (top, scale, tl.load(min_p_ptr + row).to(tl.float32)),
                (tl.load(top_k_ptr + row).to(tl.int64), tl.load(top_p_ptr + row).to(tl.float32)),
                masses * tl.exp2((best - top) * scale).to(tl.float64),
                best_id,
                tl.load(uniform_ptr + row),
                split_length,
                BLOCK_S,
                BLOCK_V,
                KEY_SHIFT,
            )
    tl.store(token_ids_ptr + row, token.to(tl.int64))
    if SUMS:
        odds = tl.load(part_odds_ptr + parts, mask=in_row, other=0.0)
        # A split's own best counts among the others, except the row's.
        odds += tl.where(ids == best_id, 0.0, 1.0)
        share = tl.where(in_row, odds * tl.exp2((best - top) * LOG2E), 0.0)
        all_odds = tl.sum(share.to(tl.float64), axis=0)
        if COUNTS_EXCLUDED:
            if excluded_token_id >= 0:
                excluded = tl.load(row_ptr + excluded_token_id).to(tl.float32)
                all_odds += tl.exp2((excluded - top) * LOG2E).to(tl.float64)
        drawn = tl.load(row_ptr + token).to(tl.float32)
        probability = tl.exp2((drawn - top) * LOG2E).to(tl.float64) / (1.0 + all_odds)
        probability = tl.where(is_empty, 0.0, probability)
        if needs_confidence_ptr is not None:
            probability = tl.where(tl.load(needs_confidence_ptr + row), probability, 0.0)
        tl.store(confidence_ptr + row, probability.to(confidence_ptr.dtype.element_ty))
