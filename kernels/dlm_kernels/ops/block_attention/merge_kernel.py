"""Triton kernels that join the partial results of cut tiles, in key order."""

from __future__ import annotations

import triton
import triton.language as tl

# Partial results that are loaded together: their loads do not wait for each other.
PARTS_AT_ONCE = tl.constexpr(8)


@triton.jit
def _add_part(
    acc, row_max, row_sum, partial_ptr, stat_ptr, part, is_live, rows, BLOCK_M: tl.constexpr, V_HEAD_DIM: tl.constexpr
):
    """Add one partial result to the running ones; a part that saw no key changes no bit."""
    dims = tl.arange(0, V_HEAD_DIM)
    part = part.to(tl.int64)
    part_max = tl.load(stat_ptr + part * 2 * BLOCK_M + rows, mask=is_live, other=float("-inf"))
    part_sum = tl.load(stat_ptr + part * 2 * BLOCK_M + BLOCK_M + rows, mask=is_live, other=0.0)
    part_rows = partial_ptr + (part * BLOCK_M + rows) * V_HEAD_DIM
    part_acc = tl.load(part_rows[:, None] + dims[None, :], mask=is_live, other=0.0)  # [BLOCK_R, V_HEAD_DIM]
    new_max = tl.maximum(row_max, part_max)
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    decay = tl.exp2(row_max - shift)
    weight = tl.exp2(part_max - shift)
    acc = acc * decay[:, None] + part_acc * weight[:, None]
    return acc, new_max, row_sum * decay + part_sum * weight


@triton.jit
def _store_rows(
    acc, row_sum, out_ptr, out_scale, v_scale_ptr, fields, kv_head, rows, out_stride_token, out_stride_head,
    GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, V_HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Divide by the sums and write the rows that are tokens."""
    if v_scale_ptr is not None:
        out_scale *= tl.load(v_scale_ptr)
    result = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None] * out_scale
    is_row = (rows // GROUP_SIZE < tl.load(fields + 2)) & (rows < BLOCK_M // GROUP_SIZE * GROUP_SIZE)
    tokens = (tl.load(fields + 1) + rows // GROUP_SIZE).to(tl.int64)
    out_rows = out_ptr + tokens * out_stride_token + (kv_head * GROUP_SIZE + rows % GROUP_SIZE) * out_stride_head
    tl.store(
        out_rows[:, None] + tl.arange(0, V_HEAD_DIM)[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=is_row[:, None],
    )


@triton.jit(do_not_specialize=["num_programs"])
def merge_cuts_kernel(
    out_ptr,
    header_ptr,
    tile_ptr,
    program_begin_ptr,
    program_tile_ptr,
    partial_ptr,
    partial_stat_ptr,
    v_scale_ptr,
    out_scale,
    num_programs,
    out_stride_token,
    out_stride_head,
    GROUP_SIZE: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
):
    """Fast partition: the first boundary inside a tile and head joins all its parts, `BLOCK_R` rows a program.

    Boundaries are as many as programs, so the grid is fixed and small; one on an edge has nothing to do.
    """
    boundary = tl.program_id(0) + 1
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    unit = tl.load(program_begin_ptr + boundary)
    unit_before = tl.load(program_begin_ptr + boundary - 1)
    if unit < tl.load(header_ptr):
        fields = tile_ptr + tl.load(program_tile_ptr + boundary) * TILE_FIELDS
        head_units = tl.load(fields + 5)
        tile_base = tl.load(fields + 6)
        kv_head = (unit - tile_base) // head_units
        head_begin = tile_base + kv_head * head_units
        head_end = head_begin + head_units
        if (unit > head_begin) & (unit_before <= head_begin):
            acc = tl.zeros([BLOCK_R, V_HEAD_DIM], tl.float32)
            row_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
            row_sum = tl.zeros([BLOCK_R], tl.float32)
            program = boundary - 1
            is_live = True
            while is_live:
                for offset in tl.static_range(PARTS_AT_ONCE):
                    owner = program + offset
                    owner_begin = tl.load(program_begin_ptr + owner, mask=owner < num_programs, other=2147483647)
                    is_part = owner_begin < head_end
                    # The part that begins with the tile is its program's last one, all others are the first.
                    part = owner * 2 + (owner_begin <= head_begin).to(tl.int32)
                    acc, row_max, row_sum = _add_part(
                        acc, row_max, row_sum, partial_ptr, partial_stat_ptr, part, is_part, rows, BLOCK_M, V_HEAD_DIM
                    )
                program += PARTS_AT_ONCE
                is_live = tl.load(program_begin_ptr + program, mask=program < num_programs, other=2147483647) < head_end
            _store_rows(
                acc, row_sum, out_ptr, out_scale, v_scale_ptr, fields, kv_head, rows, out_stride_token,
                out_stride_head, GROUP_SIZE, BLOCK_M, V_HEAD_DIM,
            )  # fmt: skip


@triton.jit
def merge_units_kernel(
    out_ptr,
    header_ptr,
    tile_ptr,
    partial_ptr,
    partial_stat_ptr,
    v_scale_ptr,
    out_scale,
    out_stride_token,
    out_stride_head,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
):
    """Deterministic partition: join the units of every tile and head that has more than one, first key first."""
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    num_items = tl.load(header_ptr + 2) * NUM_KV_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        fields = tile_ptr + item // NUM_KV_HEADS * TILE_FIELDS
        kv_head = item % NUM_KV_HEADS
        head_units = tl.load(fields + 5)
        if head_units > 1:
            acc = tl.zeros([BLOCK_R, V_HEAD_DIM], tl.float32)
            row_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
            row_sum = tl.zeros([BLOCK_R], tl.float32)
            head_begin = tl.load(fields + 6) + kv_head * head_units
            for begin in range(0, head_units, PARTS_AT_ONCE):
                for offset in tl.static_range(PARTS_AT_ONCE):
                    is_part = begin + offset < head_units
                    acc, row_max, row_sum = _add_part(
                        acc, row_max, row_sum, partial_ptr, partial_stat_ptr, head_begin + begin + offset, is_part,
                        rows, BLOCK_M, V_HEAD_DIM,
                    )  # fmt: skip
            _store_rows(
                acc, row_sum, out_ptr, out_scale, v_scale_ptr, fields, kv_head, rows, out_stride_token,
                out_stride_head, GROUP_SIZE, BLOCK_M, V_HEAD_DIM,
            )  # fmt: skip
