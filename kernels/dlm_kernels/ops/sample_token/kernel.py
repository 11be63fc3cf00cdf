"""Device functions of seeded sampling from one row of logits, and the kernel of the random numbers.

A row is drawn without sorting it. Every filter keeps the tokens above a *pivot* and, of those that equal it, the ones
up to some id; the pivot is found by bisection over the ordered bit patterns of the logits' dtype (16 passes at most
for 16-bit logits, 32 for float32), and the token by a walk in id order. Sums are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Logits below it count as -inf. It is finite so that differences of two running maxima are never NaN.
FLOOR = tl.constexpr(-1.0e38)
# The key of -inf before its shift.
_KEY_OF_MINUS_INF = tl.constexpr(-0x7F800001)
# splitmix64 constants as signed 64-bit integers.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_MIX_2 = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def uniform_of(seed, position, step):
    """The float64 in [0, 1) of (seed, position, step), all int64: splitmix64, upper 24 bits."""
    z = seed * _GOLDEN + position * _MIX_1 + step * _MIX_2 + _GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 40) & ((1 << 24) - 1)).to(tl.float64) / (1 << 24)


@triton.jit(do_not_specialize=["num_rows"])
def uniform_from_seed_kernel(seed_ptr, position_ptr, step_ptr, uniform_ptr, num_rows, BLOCK_N: tl.constexpr):
    """`uniform_of` of contiguous int64 arrays."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_range = rows < num_rows
    seed = tl.load(seed_ptr + rows, mask=in_range, other=0)
    position = tl.load(position_ptr + rows, mask=in_range, other=0)
    step = tl.load(step_ptr + rows, mask=in_range, other=0)
    tl.store(uniform_ptr + rows, uniform_of(seed, position, step), mask=in_range)


@triton.jit
def load_allowed(row, offsets):
    """Logits of a row as float32: -inf past its end, at the excluded id and where NaN; one zero instead of two."""
    row_ptr, end, excluded_token_id = row
    x = tl.load(row_ptr + offsets, mask=offsets < end, other=float("-inf")).to(tl.float32)
    x = tl.where((offsets == excluded_token_id) | (x != x), float("-inf"), x)
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def order_key(x, KEY_SHIFT: tl.constexpr):
    """An int32 that orders like `x`; KEY_SHIFT drops the bits that a 16-bit logit has not."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> KEY_SHIFT


@triton.jit
def weight_of_key(key, row_max, scale, KEY_SHIFT: tl.constexpr):
    """`exp2((x - row_max) * scale)` of the logit x that has this key, float64."""
    key = key.to(tl.int32)
    filled = (key << KEY_SHIFT) | ((1 << KEY_SHIFT) - 1)
    bits = tl.where(key < 0, filled ^ 0x7FFFFFFF, key << KEY_SHIFT)
    return tl.exp2((bits.to(tl.float32, bitcast=True) - row_max) * scale).to(tl.float64)


@triton.jit
def count_and_mass(row, row_max, scale, low_key, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr):
    """How many tokens have at least `low_key`, and the sum of their weights (int64, float64)."""
    end = row[1]
    count = tl.zeros([BLOCK_V], tl.int32)
    mass = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, end, BLOCK_V):
        offsets = start + tl.arange(0, BLOCK_V)
        x = load_allowed(row, offsets)
        is_in = (order_key(x, KEY_SHIFT) >= low_key) & (offsets < end)
        count += is_in.to(tl.int32)
        mass += tl.where(is_in, tl.exp2((x - row_max) * scale), 0.0)
    return tl.sum(count, axis=0).to(tl.int64), tl.sum(mass.to(tl.float64), axis=0)


@triton.jit
def largest_key_reaching(
    row, row_max, scale, low_key, needed, BY_COUNT: tl.constexpr, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr
):
    """The largest key whose tokens, with all above, reach `needed` tokens (BY_COUNT) or weight; `low_key` does."""
    low = low_key.to(tl.int64)
    high = order_key(row_max, KEY_SHIFT).to(tl.int64)
    while low < high:
        middle = low + (high - low + 1) // 2
        count, mass = count_and_mass(row, row_max, scale, middle, BLOCK_V, KEY_SHIFT)
        reaches = count >= needed if BY_COUNT else mass >= needed
        low = tl.where(reaches, middle, low)
        high = tl.where(reaches, high, middle - 1)
    return low


@triton.jit
def id_of_tie(row, pivot, rank, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr):
    """The id of the `rank`-th token, counted from 1 in id order, whose key is `pivot`; the row's end without one."""
    end = row[1]
    lanes = tl.arange(0, BLOCK_V)
    start = tl.full([], 0, tl.int32)
    before = tl.full([], 0, tl.int32)
    found = start + end
    while (found == end) & (start < end):
        is_tie = (order_key(load_allowed(row, start + lanes), KEY_SHIFT) == pivot) & (start + lanes < end)
        count = before + tl.cumsum(is_tie.to(tl.int32), axis=0)
        found = tl.min(tl.where(is_tie & (count == rank), start + lanes, end), axis=0)
        before += tl.sum(is_tie.to(tl.int32), axis=0)
        start += BLOCK_V
    return found


@triton.jit
def filter_limits(row, row_max, scale, top_k, top_p, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr):
    """What top-k and then top-p keep: keys above `pivot` (int64), and those that equal it up to id `last_tie`.

    Args:
        row: see `load_allowed`.
        row_max: largest allowed logit, float32, above FLOOR.
        scale: log2(e) / temperature, float32.
        top_k: int64, < 1 or >= V keeps all.
        top_p: float32.
    """
    end = row[1]
    pivot = tl.full([], _KEY_OF_MINUS_INF >> KEY_SHIFT, tl.int64)
    num_ties = tl.full([], 0, tl.int64) + end
    if (top_k >= 1) & (top_k < end):
        pivot = largest_key_reaching(row, row_max, scale, pivot, top_k, True, BLOCK_V, KEY_SHIFT)
        above, _ = count_and_mass(row, row_max, scale, pivot + 1, BLOCK_V, KEY_SHIFT)
        num_ties = top_k - above
    if top_p < 1.0:
        # Where nothing was cut the pivot is the key of -inf, and its ties weigh nothing.
        _, mass = count_and_mass(row, row_max, scale, pivot + 1, BLOCK_V, KEY_SHIFT)
        mass += num_ties.to(tl.float64) * weight_of_key(pivot, row_max, scale, KEY_SHIFT)
        needed = top_p.to(tl.float64) * mass
        pivot_p = largest_key_reaching(row, row_max, scale, pivot, needed, False, BLOCK_V, KEY_SHIFT)
        _, mass = count_and_mass(row, row_max, scale, pivot_p + 1, BLOCK_V, KEY_SHIFT)
        weight = weight_of_key(pivot_p, row_max, scale, KEY_SHIFT)
        # As many of the equals as it takes, and at least one.
        ratio = tl.where(weight > 0.0, (needed - mass) / weight, end)
        wanted = tl.ceil(tl.minimum(tl.maximum(ratio, 1.0), end)).to(tl.int64)
        num_ties = tl.where(pivot_p == pivot, tl.minimum(wanted, num_ties), wanted)
        pivot = pivot_p
    return pivot, id_of_tie(row, pivot, num_ties, BLOCK_V, KEY_SHIFT)


@triton.jit
def no_limits(row):
    """The limits that keep everything."""
    return tl.full([], -0x7FFFFFFF, tl.int64), tl.full([], 0, tl.int32) + row[1]


@triton.jit
def kept_weights(row, kept, rejected, offsets, KEY_SHIFT: tl.constexpr, HAS_PROBS: tl.constexpr):
    """Weights of the tokens that a row may draw, 0 elsewhere, float64.

    Args:
        row: see `load_allowed`.
        kept: row_max, scale, pivot, last_tie, min_weight. Keys above the pivot are kept, and those that equal it
            with an id of at most last_tie, all of them from min_weight relative to the largest.
        rejected: draft_probs_ptr, draft_mass, draft_id: the distribution of a rejected draft, weighed by
            `draft_mass`, is taken off; -1 as `draft_id` takes nothing off.
        offsets: ids.
        HAS_PROBS: without, the draft's distribution is all on `draft_id`.
    """
    row_max, scale, pivot, last_tie, min_weight = kept
    draft_probs_ptr, draft_mass, draft_id = rejected
    end = row[1]
    x = load_allowed(row, offsets)
    key = order_key(x, KEY_SHIFT)
    weight = tl.exp2((x - row_max) * scale)
    is_kept = (key > pivot) | ((key == pivot) & (offsets <= last_tie))
    is_kept = is_kept & (weight >= min_weight) & (offsets < end)
    if HAS_PROBS:
        weight = tl.where(is_kept, weight, 0.0).to(tl.float64)
        taken = tl.load(draft_probs_ptr + offsets, mask=is_kept & (draft_id >= 0), other=0.0).to(tl.float64)
        left = tl.maximum(weight - taken * draft_mass, 0.0)
    else:
        left = tl.where(is_kept & (offsets != draft_id), weight, 0.0).to(tl.float64)
    return left


@triton.jit
def kept_mass(row, kept, rejected, begin, end, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr, HAS_PROBS: tl.constexpr):
    """Sum of `kept_weights` over ids `begin..end`, in the order in which `first_crossing` adds them."""
    part = (row[0], end, row[2])
    mass = tl.full([], 0.0, tl.float64)
    for start in range(begin, end, BLOCK_V):
        offsets = start + tl.arange(0, BLOCK_V)
        mass += tl.sum(kept_weights(part, kept, rejected, offsets, KEY_SHIFT, HAS_PROBS), axis=0)
    return mass


@triton.jit
def first_crossing(
    row, kept, rejected, begin, end, target, BLOCK_V: tl.constexpr, KEY_SHIFT: tl.constexpr, HAS_PROBS: tl.constexpr
):
    """The first id at which the running sum of `kept_weights` from `begin` exceeds `target` (less than all of it)."""
    part = (row[0], end, row[2])
    lanes = tl.arange(0, BLOCK_V)
    start = begin
    before = tl.full([], 0.0, tl.float64)
    weights = kept_weights(part, kept, rejected, start + lanes, KEY_SHIFT, HAS_PROBS)
    tile_mass = tl.sum(weights, axis=0)
    while (before + tile_mass <= target) & (start + BLOCK_V < end):
        before += tile_mass
        start += BLOCK_V
        weights = kept_weights(part, kept, rejected, start + lanes, KEY_SHIFT, HAS_PROBS)
        tile_mass = tl.sum(weights, axis=0)
    crosses = before + tl.cumsum(weights, axis=0) > target
    first = tl.min(tl.where(crosses, start + lanes, end), axis=0)
    # Rounding of the last sum may leave the target uncrossed: then the last token that counts is meant.
    last = tl.max(tl.where(weights > 0.0, start + lanes, begin), axis=0)
    return tl.where(first < end, first, last)
