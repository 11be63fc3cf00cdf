"""One pass over logits by vocabulary splits.

A lane owns groups of WIDTH logits that lie side by side (16 bytes) and keeps, for each of its groups, a running
maximum, the sum of everything else relative to it, and the tile in which the maximum stood. Nothing crosses lanes
before the end of a split. Only the winning group is read a second time, for the id and for the terms beside it: the
winner's own `exp(0)` is in no sum, so that the odds of a token of probability 1 - 1e-12 are still exact to float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dlm_kernels.ops.sample_token.kernel import FLOOR, LOG2E

# No group, no id.
NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _absorb(x, tile, best, others, own, best_tile, IN_ORDER: tl.constexpr, SUMS: tl.constexpr):
    """Add a tile of logits `[GROUPS, WIDTH]` to the running state `[GROUPS]` of its groups."""
    largest = tl.max(x, axis=1)
    is_new = largest > best
    if not IN_ORDER:
        is_new = is_new | ((largest == best) & (tile < best_tile))
    new_best = tl.maximum(best, largest)
    if SUMS:
        # Sums are relative to 2**reference. Its rounding is no error: `_close` accounts for it.
        reference = new_best * LOG2E
        here = tl.sum(tl.exp2(x * LOG2E - reference[:, None]), axis=1)
        rescale = tl.exp2(best * LOG2E - reference)
        others = tl.where(is_new, (others + own) * rescale, others + here)
        own = tl.where(is_new, here, own)
    return new_best, others, own, tl.where(is_new, tile, best_tile)


@triton.jit
def _absorb_tempered(x, scale, best, new_best, mass):
    """Add a tile to the running sums of `exp2((x - best) * scale)`, `[GROUPS]`."""
    # A low temperature makes an infinity of FLOOR.
    reference = tl.maximum(new_best * scale, FLOOR)
    here = tl.sum(tl.exp2(x * scale - reference[:, None]), axis=1)
    return mass * tl.exp2(best * scale - reference) + here


@triton.jit
def _load_tile(split_ptr, tile, num_logits, excluded, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """A tile that ends early or holds the excluded logit: -inf there."""
    offsets = tile * (GROUPS * WIDTH) + tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = tl.load(split_ptr + offsets, mask=offsets < num_logits, other=float("-inf")).to(tl.float32)
    return tl.where(offsets == excluded, float("-inf"), x)


@triton.jit
def scan_split(
    split_ptr,
    num_logits,
    excluded,
    scale,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    """Running state of every group over one split; `excluded` counts from its start and may lie outside."""
    TILE: tl.constexpr = GROUPS * WIDTH
    best = tl.full([GROUPS], FLOOR, tl.float32)
    others = tl.zeros([GROUPS], tl.float32)
    own = tl.zeros([GROUPS], tl.float32)
    mass = tl.zeros([GROUPS], tl.float32)
    best_tile = tl.full([GROUPS], NOWHERE, tl.int32)
    num_full = num_logits // TILE
    offsets = tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    # The tile of the excluded logit is left for later: the main loop then compares no ids.
    is_inside = (excluded >= 0) & (excluded < num_full * TILE)
    skipped = tl.where(is_inside, excluded // TILE, num_full)
    for index in range(num_full - is_inside.to(tl.int32)):
        tile = index + (index >= skipped).to(tl.int32)
        x = tl.load(split_ptr + tile * TILE + offsets).to(tl.float32)  # [GROUPS, WIDTH]
        new_best, others, own, best_tile = _absorb(x, tile, best, others, own, best_tile, True, SUMS)
        if TEMPERED:
            mass = _absorb_tempered(x, scale, best, new_best, mass)
        best = new_best
    for special in range(1 - is_inside.to(tl.int32), 1 + (num_full * TILE < num_logits).to(tl.int32)):
        tile = tl.where(special == 0, skipped, num_full)
        x = _load_tile(split_ptr, tile, num_logits, excluded, GROUPS, WIDTH)
        new_best, others, own, best_tile = _absorb(x, tile, best, others, own, best_tile, False, SUMS)
        if TEMPERED:
            mass = _absorb_tempered(x, scale, best, new_best, mass)
        best = new_best
    return best, others, own, best_tile, mass


@triton.jit
def winner_of(split_ptr, num_logits, excluded, best, best_tile, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The largest logit of a scanned split and its id, after a second look at its group.

    Returns:
        top: float32, FLOOR where the split holds nothing above it.
        winner: start of the winning group, NOWHERE without one.
        offsets, x: `[WIDTH]`, the group's ids and logits, -inf at what must not be chosen.
        chosen: the lowest id that holds `top`; the lowest that is not excluded where there is no winner.
    """
    top = tl.max(best, axis=0)
    group_ids = best_tile * (GROUPS * WIDTH) + tl.arange(0, GROUPS) * WIDTH
    winner = tl.min(tl.where((best == top) & (best_tile != NOWHERE), group_ids, NOWHERE), axis=0)
    offsets = tl.where(winner == NOWHERE, 0, winner) + tl.arange(0, WIDTH)
    is_allowed = (offsets < num_logits) & (offsets != excluded)
    x = tl.load(split_ptr + offsets, mask=is_allowed, other=float("-inf")).to(tl.float32)
    chosen = tl.min(tl.where((x == top) & is_allowed, offsets, NOWHERE), axis=0)
    first = tl.minimum((excluded == 0).to(tl.int32), num_logits - 1)
    chosen = tl.where((winner == NOWHERE) | (chosen == NOWHERE), first, chosen)
    return top, winner, offsets, x, chosen


@triton.jit
def _rounding_of(reference, best, scale):
    """`2**(reference - best * scale)`: what the rounding of `best * scale` did to sums relative to it."""
    return tl.exp2((reference.to(tl.float64) - best.to(tl.float64) * scale.to(tl.float64)).to(tl.float32))


@triton.jit(do_not_specialize=["excluded_token_id", "num_splits"])
def choose_token_scan_kernel(
    logits_ptr,
    logits_stride_row,
    temperature_ptr,
    is_settled_ptr,
    part_best_ptr,
    part_odds_ptr,
    part_mass_ptr,
    part_id_ptr,
    vocab_size,
    excluded_token_id,
    split_length,
    num_splits,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
):
    """One program per (row, split): its largest allowed logit, where, the odds of its others, the tempered mass.

    `part_*` are `[N, num_splits]`. An empty split gives FLOOR, its first id, and sums of 0.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if is_settled_ptr is not None:
        if tl.load(is_settled_ptr + row):
            return
    begin = split * split_length
    num_logits = tl.minimum(vocab_size - begin, split_length)
    split_ptr = logits_ptr + row * logits_stride_row + begin
    excluded = tl.where(excluded_token_id < 0, -1, excluded_token_id - begin)
    scale = tl.full([], LOG2E, tl.float32)
    if temperature_ptr is not None:
        temperature = tl.load(temperature_ptr + row).to(tl.float32)
        if temperature > 0.0:
            scale = LOG2E / temperature
            best, others, own, best_tile, mass = scan_split(
                split_ptr, num_logits, excluded, scale, GROUPS, WIDTH, SUMS, True
            )
        else:
            best, others, own, best_tile, mass = scan_split(
                split_ptr, num_logits, excluded, scale, GROUPS, WIDTH, SUMS, False
            )
    else:
        best, others, own, best_tile, mass = scan_split(
            split_ptr, num_logits, excluded, scale, GROUPS, WIDTH, SUMS, False
        )

    top, winner, offsets, x, chosen = winner_of(split_ptr, num_logits, excluded, best, best_tile, GROUPS, WIDTH)
    is_empty = winner == NOWHERE
    out = row * num_splits + split
    tl.store(part_best_ptr + out, top)
    tl.store(part_id_ptr + out, begin + chosen)
    if SUMS:
        reference = top * LOG2E
        group_ids = best_tile * (GROUPS * WIDTH) + tl.arange(0, GROUPS) * WIDTH
        sums = others + tl.where((group_ids == winner) & (best == top), 0.0, own)
        odds = tl.sum(sums * tl.exp2(best * LOG2E - reference), axis=0)
        beside = tl.where((offsets != chosen) & (winner != NOWHERE), tl.exp2(x * LOG2E - reference), 0.0)
        odds += tl.sum(beside, axis=0)
        tl.store(part_odds_ptr + out, odds * _rounding_of(reference, top, tl.full([], LOG2E, tl.float32)))
    if temperature_ptr is not None:
        reference = tl.maximum(top * scale, FLOOR)
        total = tl.sum(mass * tl.exp2(best * scale - reference), axis=0)
        tl.store(part_mass_ptr + out, tl.where(is_empty, 0.0, total * _rounding_of(reference, top, scale)))
