"""Triton kernel of block attention: a persistent grid over the units of a `WorkList`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_slots(table_ptr, start, kv_end, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pool slots of the keys from `start` on: the first one where a page covers the tile, else one per key."""
    if PAGE_SIZE >= BLOCK_N:
        page_begin = start // PAGE_SIZE * PAGE_SIZE
        slots = tl.load(table_ptr + page_begin, mask=start < kv_end, other=0) + (start - page_begin)
    else:
        positions = start + tl.arange(0, BLOCK_N)
        in_page = positions % PAGE_SIZE
        slots = tl.load(table_ptr + (positions - in_page), mask=positions < kv_end, other=0) + in_page
    return slots


@triton.jit
def _tile_offsets(slots, stride_slot, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """`[BLOCK_N, BLOCK_D]` int64 offsets of a K or V tile."""
    if PAGE_SIZE >= BLOCK_N:
        key_slots = slots + tl.arange(0, BLOCK_N)
    else:
        key_slots = slots
    return key_slots.to(tl.int64)[:, None] * stride_slot + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def _softmax_step(scores, row_max, row_sum, acc, qk_scale, IS_MASKED: tl.constexpr):
    """One step of the running softmax in base 2.

    The scale stays out of the queries: folding it in would round them once more in 16 bit, and here it is free,
    because scaling and subtracting the maximum are one multiply-add.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1) * qk_scale)  # [BLOCK_M]
    if IS_MASKED:
        # Rows that have seen nothing yet: -inf minus -inf is not a number.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    else:
        shift = new_max
    weights = tl.exp2(tl.fma(scores, qk_scale, -shift[:, None]))  # [BLOCK_M, BLOCK_N]
    decay = tl.exp2(row_max - shift)
    return weights, new_max, row_sum * decay + tl.sum(weights, 1), acc * decay[:, None]


@triton.jit
def _attend(
    acc,
    row_max,
    row_sum,
    slots,
    queries,
    limits,
    k_ptr,
    v_ptr,
    table_ptr,
    begin,
    end,
    kv_end,
    qk_scale,
    k_stride_slot,
    v_stride_slot,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    HAS_EQUAL_STRIDES: tl.constexpr,
    IS_MASKED: tl.constexpr,
):
    """Attend to keys `begin..end`. `slots` are those of the first tile; those after the last one are handed back.

    The next tile's slots are loaded one trip ahead. A slot load inside the trip that needs it would keep the
    pipeliner from fetching K and V more than one tile early, whatever `num_stages` says.
    """
    for start in range(begin, end, BLOCK_N):
        next_slots = _load_slots(table_ptr, start + BLOCK_N, kv_end, PAGE_SIZE, BLOCK_N)
        k_offsets = _tile_offsets(slots, k_stride_slot, PAGE_SIZE, BLOCK_N, HEAD_DIM)
        k_ptrs = k_ptr + k_offsets
        if HAS_EQUAL_STRIDES:
            v_ptrs = v_ptr + k_offsets
        else:
            v_ptrs = v_ptr + _tile_offsets(slots, v_stride_slot, PAGE_SIZE, BLOCK_N, V_HEAD_DIM)
        if IS_MASKED:
            positions = start + tl.arange(0, BLOCK_N)
            is_key = (positions < kv_end)[:, None]
            keys = tl.load(k_ptrs, mask=is_key, other=0.0)  # [BLOCK_N, HEAD_DIM]
        else:
            keys = tl.load(k_ptrs)
        scores = tl.dot(queries, tl.trans(keys.to(queries.dtype)), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        if IS_MASKED:
            scores = tl.where(positions[None, :] < limits[:, None], scores, float("-inf"))
        weights, row_max, row_sum, acc = _softmax_step(scores, row_max, row_sum, acc, qk_scale, IS_MASKED)
        if IS_MASKED:
            values = tl.load(v_ptrs, mask=is_key, other=0.0)  # [BLOCK_N, V_HEAD_DIM]
        else:
            values = tl.load(v_ptrs)
        acc = tl.dot(weights.to(queries.dtype), values.to(queries.dtype), acc, input_precision="ieee")
        slots = next_slots
    return acc, row_max, row_sum, slots


@triton.jit
def _store_result(acc, row_sum, out_scale, out_rows, is_row, V_HEAD_DIM: tl.constexpr):
    """Divide by the sums and write the rows that are tokens; a row that saw no key is 0."""
    result = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None] * out_scale
    out_ptrs = out_rows[:, None] + tl.arange(0, V_HEAD_DIM)[None, :]
    tl.store(out_ptrs, result.to(out_rows.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def _store_partial(acc, row_max, row_sum, partial_ptr, stat_ptr, part, BLOCK_M: tl.constexpr, V_HEAD_DIM: tl.constexpr):
    """Leave an unnormalised result for the merge."""
    rows = tl.arange(0, BLOCK_M)
    partial_rows = partial_ptr + (part * BLOCK_M + rows) * V_HEAD_DIM
    tl.store(partial_rows[:, None] + tl.arange(0, V_HEAD_DIM)[None, :], acc)
    tl.store(stat_ptr + part * 2 * BLOCK_M + rows, row_max)
    tl.store(stat_ptr + part * 2 * BLOCK_M + BLOCK_M + rows, row_sum)


@triton.jit
def _clear_padding(
    out_ptr, token, num_tokens, step, stride_token, stride_head, NUM_HEADS, BLOCK_H, V_HEAD_DIM: tl.constexpr
):
    """Zero the outputs of tokens that belong to no row, so that nothing later meets stale numbers."""
    heads = tl.arange(0, BLOCK_H)[:, None]
    offsets = heads * stride_head + tl.arange(0, V_HEAD_DIM)[None, :]
    zeros = tl.zeros([BLOCK_H, V_HEAD_DIM], out_ptr.dtype.element_ty)
    while token < num_tokens:
        tl.store(out_ptr + token.to(tl.int64) * stride_token + offsets, zeros, mask=heads < NUM_HEADS)
        token += step


# A count that changes from forward to forward must not compile the kernel anew when it is 1 or a multiple of 16.
@triton.jit(do_not_specialize=["num_tokens"])
def block_attention_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    kv_limit_ptr,
    slot_table_ptr,
    header_ptr,
    tile_ptr,
    program_begin_ptr,
    program_tile_ptr,
    partial_ptr,
    partial_stat_ptr,
    k_scale_ptr,
    v_scale_ptr,
    qk_scale,
    out_scale,
    num_tokens,
    out_stride_token,
    out_stride_head,
    q_stride_token,
    q_stride_head,
    k_stride_slot,
    k_stride_head,
    v_stride_slot,
    v_stride_head,
    table_stride_row,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    UNIT_LEN: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
    HAS_EQUAL_STRIDES: tl.constexpr,
    IS_DETERMINISTIC: tl.constexpr,
):
    """Attention of this program's units.

    Row `m` of a tile is token `m // GROUP_SIZE` and head `m % GROUP_SIZE` of the group, so K and V of a tile are
    fetched once for all of them. Consecutive units of one tile and head are one segment; in the deterministic
    partition each unit is, so that a result does not depend on where programs begin.
    """
    program = tl.program_id(0)
    if k_scale_ptr is not None:
        qk_scale *= tl.load(k_scale_ptr)
    if v_scale_ptr is not None:
        out_scale *= tl.load(v_scale_ptr)
    rows = tl.arange(0, BLOCK_M)
    row_token = rows // GROUP_SIZE
    row_head = rows % GROUP_SIZE
    dims = tl.arange(0, HEAD_DIM)

    unit = tl.load(program_begin_ptr + program)
    unit_end = tl.load(program_begin_ptr + program + 1)
    tile = tl.load(program_tile_ptr + program)
    while unit < unit_end:
        fields = tile_ptr + tile * TILE_FIELDS
        table_ptr = slot_table_ptr + tl.load(fields).to(tl.int64) * table_stride_row
        token_begin = tl.load(fields + 1)
        tile_len = tl.load(fields + 2)
        kv_end = tl.load(fields + 3)
        seen_by_all = tl.load(fields + 4)
        head_units = tl.load(fields + 5)
        unit_of_tile = unit - tl.load(fields + 6)
        kv_head = unit_of_tile // head_units
        first = unit_of_tile - kv_head * head_units
        if IS_DETERMINISTIC:
            num_units = 1
        else:
            num_units = tl.minimum(head_units - first, unit_end - unit)
        begin = first * UNIT_LEN
        end = tl.minimum(begin + num_units * UNIT_LEN, kv_end)
        unmasked = tl.maximum(tl.minimum(seen_by_all, end) - begin, 0) // BLOCK_N * BLOCK_N

        slots = _load_slots(table_ptr, begin, kv_end, PAGE_SIZE, BLOCK_N)
        is_row = (row_token < tile_len) & (rows < BLOCK_M // GROUP_SIZE * GROUP_SIZE)
        tokens = (token_begin + row_token).to(tl.int64)
        heads = kv_head * GROUP_SIZE + row_head
        limits = tl.load(kv_limit_ptr + tokens, mask=is_row, other=0)  # [BLOCK_M]
        limits = tl.minimum(limits, kv_end).to(tl.int32)
        q_rows = q_ptr + tokens * q_stride_token + heads * q_stride_head
        queries = tl.load(q_rows[:, None] + dims[None, :], mask=is_row[:, None], other=0.0)  # [BLOCK_M, HEAD_DIM]
        acc = tl.zeros([BLOCK_M, V_HEAD_DIM], tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        k_head_ptr = k_ptr + kv_head * k_stride_head
        v_head_ptr = v_ptr + kv_head * v_stride_head
        acc, row_max, row_sum, slots = _attend(
            acc, row_max, row_sum, slots, queries, limits, k_head_ptr, v_head_ptr, table_ptr, begin, begin + unmasked,
            kv_end, qk_scale, k_stride_slot, v_stride_slot, PAGE_SIZE, BLOCK_N, HEAD_DIM, V_HEAD_DIM,
            HAS_EQUAL_STRIDES, False,
        )  # fmt: skip
        acc, row_max, row_sum, slots = _attend(
            acc, row_max, row_sum, slots, queries, limits, k_head_ptr, v_head_ptr, table_ptr, begin + unmasked, end,
            kv_end, qk_scale, k_stride_slot, v_stride_slot, PAGE_SIZE, BLOCK_N, HEAD_DIM, V_HEAD_DIM,
            HAS_EQUAL_STRIDES, True,
        )  # fmt: skip

        if num_units == head_units:
            # One segment covers the tile: no partial result, no merge.
            out_rows = out_ptr + tokens * out_stride_token + heads * out_stride_head
            _store_result(acc, row_sum, out_scale, out_rows, is_row, V_HEAD_DIM)
        else:
            if IS_DETERMINISTIC:
                part = unit.to(tl.int64)
            else:
                # A program cuts at most two tiles: the one it begins inside, and the one it ends inside.
                part = program.to(tl.int64) * 2 + (first == 0).to(tl.int64)
            _store_partial(acc, row_max, row_sum, partial_ptr, partial_stat_ptr, part, BLOCK_M, V_HEAD_DIM)
        unit += num_units
        tile += ((kv_head == NUM_KV_HEADS - 1) & (first + num_units == head_units)).to(tl.int32)

    _clear_padding(
        out_ptr, tl.load(header_ptr + 3) + program, num_tokens, tl.num_programs(0), out_stride_token, out_stride_head,
        NUM_KV_HEADS * GROUP_SIZE, BLOCK_H, V_HEAD_DIM,
    )  # fmt: skip
