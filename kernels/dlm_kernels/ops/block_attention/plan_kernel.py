"""Triton kernels that distribute a forward over a fixed grid, from lengths in device memory; once for all layers."""

from __future__ import annotations

import triton
import triton.language as tl


# Counts that change from forward to forward must not compile the kernels anew when they are 1 or a multiple of 16.
@triton.jit(do_not_specialize=["num_rows", "num_tokens"])
def tile_plan_kernel(
    tile_ptr,
    header_ptr,
    row_lens_ptr,
    kv_lens_ptr,
    kv_limit_ptr,
    slots_ptr,
    num_rows,
    num_tokens,
    TOKENS_PER_TILE: tl.constexpr,
    UNIT_LEN: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Describe row tile `program_id`: which tokens, how many keys, how many units.

    Every program sums the row lengths for itself, so that tiles come out packed without a scan across programs.
    """
    tile = tl.program_id(0)
    rows = tl.arange(0, BLOCK_R)
    row_lens = tl.load(row_lens_ptr + rows, mask=rows < num_rows, other=0)  # [BLOCK_R]
    row_tiles = (row_lens + TOKENS_PER_TILE - 1) // TOKENS_PER_TILE
    row = tl.sum((tl.cumsum(row_tiles, 0) <= tile).to(tl.int32), 0)
    is_used = row < num_rows
    is_before = rows < row
    tile_of_row = tile - tl.sum(tl.where(is_before, row_tiles, 0), 0)
    token_begin = tl.sum(tl.where(is_before, row_lens, 0), 0) + tile_of_row * TOKENS_PER_TILE
    row_len = tl.sum(tl.where(rows == row, row_lens, 0), 0)
    # A plan whose rows exceed the token tensors must not read past them.
    tile_len = tl.minimum(row_len - tile_of_row * TOKENS_PER_TILE, num_tokens - token_begin)
    tile_len = tl.where(is_used, tl.maximum(tl.minimum(tile_len, TOKENS_PER_TILE), 0), 0)

    kv_len = tl.load(kv_lens_ptr + row, mask=is_used, other=0)
    table_row = tl.load(slots_ptr + row, mask=is_used, other=0).to(tl.int32)
    tokens = tl.arange(0, BLOCK_T)
    is_token = tokens < tile_len
    limits = tl.load(kv_limit_ptr + token_begin + tokens, mask=is_token, other=0)  # [BLOCK_T]
    kv_end = tl.maximum(tl.minimum(tl.max(limits, 0), kv_len), 0)
    seen_by_all = tl.min(tl.where(is_token, limits, kv_end), 0)
    seen_by_all = tl.maximum(tl.minimum(seen_by_all, kv_end), 0)
    # A tile that sees nothing still has one unit: somebody must write its zeros.
    units = tl.where(is_used, tl.maximum((kv_end + UNIT_LEN - 1) // UNIT_LEN, 1), 0)

    fields = tile_ptr + tile * TILE_FIELDS
    tl.store(fields, table_row)
    tl.store(fields + 1, token_begin)
    tl.store(fields + 2, tile_len)
    tl.store(fields + 3, kv_end)
    tl.store(fields + 4, seen_by_all)
    tl.store(fields + 5, units)
    if tile == 0:
        tl.store(header_ptr + 2, tl.sum(row_tiles, 0))
        tl.store(header_ptr + 3, tl.sum(row_lens, 0))


@triton.jit(do_not_specialize=["num_tiles", "num_programs"])
def schedule_kernel(
    program_begin_ptr,
    program_tile_ptr,
    header_ptr,
    tile_ptr,
    num_tiles,
    num_programs,
    NUM_KV_HEADS: tl.constexpr,
    MIN_UNITS: tl.constexpr,
    SNAP_DIVISOR: tl.constexpr,
    TILE_FIELDS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Find where program `program_id` begins when all units, laid end to end, are cut into equal shares.

    Units run over (tile, K/V head, keys). A cut close to a head's edge moves onto it: one partial result less for a
    share at most `2 / SNAP_DIVISOR` longer. 0 switches that off.
    """
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK_T)
    total = 0
    for begin in range(0, num_tiles, BLOCK_T):
        tiles = begin + offsets
        total += tl.sum(tl.load(tile_ptr + tiles * TILE_FIELDS + 5, mask=tiles < num_tiles, other=0), 0)
    total *= NUM_KV_HEADS
    share = tl.maximum((total + num_programs - 1) // num_programs, MIN_UNITS)
    unit = tl.minimum(program * share, total)

    tile = 0
    tile_base = 0
    running = 0
    for begin in range(0, num_tiles, BLOCK_T):
        tiles = begin + offsets
        units = tl.load(tile_ptr + tiles * TILE_FIELDS + 5, mask=tiles < num_tiles, other=0) * NUM_KV_HEADS
        ends = running + tl.cumsum(units, 0)
        if program == 0:
            tl.store(tile_ptr + tiles * TILE_FIELDS + 6, ends - units, mask=tiles < num_tiles)
        is_past = (ends <= unit) & (units > 0)
        tile += tl.sum(is_past.to(tl.int32), 0)
        tile_base = tl.maximum(tile_base, tl.max(tl.where(is_past, ends, 0), 0))
        running += tl.sum(units, 0)

    if SNAP_DIVISOR > 0:
        if unit < total:
            head_units = tl.load(tile_ptr + tile * TILE_FIELDS + 5)
            head = (unit - tile_base) // head_units
            head_begin = tile_base + head * head_units
            tolerance = share // SNAP_DIVISOR
            if unit - head_begin <= tolerance:
                unit = head_begin
            elif head_begin + head_units - unit <= tolerance:
                unit = head_begin + head_units
                tile += (head == NUM_KV_HEADS - 1).to(tl.int32)
    tl.store(program_begin_ptr + program, unit)
    tl.store(program_tile_ptr + program, tile)
    if program == 0:
        tl.store(header_ptr, total)
        tl.store(header_ptr + 1, share)
