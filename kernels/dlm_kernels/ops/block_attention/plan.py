"""Sizes of the block-attention kernel: tile shapes, fixed grids and workspaces. Needs no Triton.

Everything here follows from shapes, dtypes and host-known upper bounds. Lengths and limits stay on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# tl.dot needs 16 rows; above 128 the accumulators of one tile no longer fit the registers.
MIN_BLOCK_M, MAX_BLOCK_M = 16, 128
# Query heads on one key head: at least one token must fit every tile shape.
MAX_GROUP_SIZE = 64
# The deterministic partition keeps one tile shape and one chunk for every batch: other shapes round differently.
DETERMINISTIC_BLOCK_M = 64
DETERMINISTIC_CHUNK_LEN = 1024
# A cut costs a partial result of `BLOCK_M` rows, as many bytes as the K/V of `BLOCK_M` tokens in 16 bit.
MIN_CHUNK_ROWS, MIN_CHUNK_LEN = 2, 128
# int32 fields of a tile: table row, first token, tokens, visible keys, keys that all tokens see, units, first unit.
TILE_FIELDS = 8
# int32 fields of the header: units in all, units of a program, tiles, query tokens.
HEADER_FIELDS = 4
SUPPORTED_HEAD_DIMS = (64, 128, 256)
SUPPORTED_PAGE_SIZES = (1, 16, 32, 64)
SUPPORTED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SUPPORTED_KV_DTYPES = (*SUPPORTED_DTYPES, torch.float8_e4m3fn)


@dataclass(frozen=True)
class TileConfig:
    """Compile-time shape of one variant.

    Attributes:
        block_m: packed query rows (tokens x grouped heads) of a tile.
        block_n: keys of one trip of the loop.
        num_warps: warps of a program.
        num_stages: pipeline depth.
        programs_per_sm: persistent programs that are resident on one multiprocessor.
        max_registers: cap on a thread's registers; None leaves it to the assembler.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    max_registers: int | None = None


@dataclass(frozen=True)
class Geometry:
    """What the tensors of a layer decide; layers that share it share a work list."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype

    @property
    def group_size(self) -> int:
        return self.num_q_heads // self.num_kv_heads


@dataclass(frozen=True)
class WorkList:
    """Device-made distribution of a forward over a fixed grid, with the workspace of its partial results.

    Attributes:
        config: tile shape.
        unit_len: keys of a unit, the smallest piece that a program can get.
        num_programs: programs of the persistent grid.
        header: `[HEADER_FIELDS]` int32.
        tiles: `[tile capacity, TILE_FIELDS]` int32.
        program_begin: `[num_programs + 1]` int32, first unit of each program.
        program_tile: `[num_programs + 1]` int32, tile of that unit.
        partial: `[slots, block_m, v_head_dim]` float32, unnormalised outputs of cut tiles.
        partial_stat: `[slots, 2, block_m]` float32, their running maximum (base 2) and sum.
    """

    config: TileConfig
    unit_len: int
    num_programs: int
    header: Tensor
    tiles: Tensor
    program_begin: Tensor
    program_tile: Tensor
    partial: Tensor
    partial_stat: Tensor


@dataclass(frozen=True)
class KernelPlan:
    """One forward for the Triton kernel; the arguments of `make_plan`, and the work lists made so far."""

    row_lens: Tensor
    kv_lens: Tensor
    kv_limit: Tensor
    slots: Tensor
    slot_table: Tensor
    max_row_len: int
    max_kv_len: int
    page_size: int
    deterministic: bool
    work_lists: dict[Geometry, WorkList] = field(default_factory=dict, compare=False)

    @property
    def num_tokens(self) -> int:
        """T: query tokens in the forward, padding included."""
        return self.kv_limit.numel()


def tile_config(geometry: Geometry, max_row_len: int, deterministic: bool) -> TileConfig:
    """Tile shape for rows of up to `max_row_len` tokens."""
    group = geometry.group_size
    block_m = max(_next_power_of_2(max(max_row_len, 1) * group), MIN_BLOCK_M)
    if deterministic:
        block_m = DETERMINISTIC_BLOCK_M
    head_dim = max(geometry.head_dim, geometry.v_head_dim)
    if geometry.dtype == torch.float32:
        # No tensor-core path at full precision: small tiles, so that the operands of the scalar product fit registers.
        block_m = max(MIN_BLOCK_M, _next_power_of_2(group))
        return TileConfig(block_m, 32, num_warps=8, num_stages=2, programs_per_sm=1)
    is_fp8 = geometry.kv_dtype == torch.float8_e4m3fn
    # A tile of 128 rows and 256 dims leaves no registers for the conversion of fp8 keys.
    block_m = min(block_m, 64 if is_fp8 and head_dim == 256 else MAX_BLOCK_M)
    # Rows below 64 use the warp's own matrix instruction, and fp8 tiles pass through registers: there the pipeliner
    # keeps one buffer less than it has stages.
    num_stages = 4 if block_m < 64 or is_fp8 else 3
    num_warps = 8 if block_m == 128 or (block_m == 64 and head_dim == 256) else 4
    programs_per_sm = 1 if num_warps == 8 or head_dim == 256 else 2
    # Left alone, the assembler spills two registers of the smallest variant for an occupancy that nobody asked for.
    max_registers = 168 if head_dim == 64 and block_m == MIN_BLOCK_M else None
    block_n = 32 if head_dim == 256 else 64
    return TileConfig(block_m, block_n, num_warps, num_stages, programs_per_sm, max_registers)


def allocate_work_list(plan: KernelPlan, geometry: Geometry, num_sms: int) -> WorkList:
    """Allocate a work list, sized by upper bounds only; the plan kernels fill it.

    Args:
        plan: the forward.
        geometry: heads, dims and dtypes of the layers that will use it.
        num_sms: multiprocessors of the device.
    """
    config = tile_config(geometry, plan.max_row_len, plan.deterministic)
    unit_len = DETERMINISTIC_CHUNK_LEN if plan.deterministic else config.block_n
    num_tiles = tile_capacity(plan, geometry, config)
    max_units = num_tiles * geometry.num_kv_heads * max(1, -(-plan.max_kv_len // unit_len))
    num_programs = min(num_sms * config.programs_per_sm, -(-max_units // min_units(config, unit_len)))
    # A program cuts at most its first and its last tile; in the deterministic partition every unit may be a part.
    slots = max_units if plan.deterministic else 2 * num_programs
    device = plan.kv_limit.device

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return WorkList(
        config=config,
        unit_len=unit_len,
        num_programs=num_programs,
        header=empty(HEADER_FIELDS),
        tiles=empty(num_tiles, TILE_FIELDS),
        program_begin=empty(num_programs + 1),
        program_tile=empty(num_programs + 1),
        partial=empty(slots, config.block_m, geometry.v_head_dim, dtype=torch.float32),
        partial_stat=empty(slots, 2, config.block_m, dtype=torch.float32),
    )


def tile_capacity(plan: KernelPlan, geometry: Geometry, config: TileConfig) -> int:
    """Most row tiles that any lengths within the plan's bounds can give."""
    tokens_per_tile = config.block_m // geometry.group_size
    num_rows = plan.row_lens.numel()
    by_rows = num_rows * max(1, -(-plan.max_row_len // tokens_per_tile))
    return max(1, min(by_rows, num_rows + plan.num_tokens // tokens_per_tile))


def min_units(config: TileConfig, unit_len: int) -> int:
    """Fewest units that are worth a program of their own."""
    return max(1, max(MIN_CHUNK_LEN, MIN_CHUNK_ROWS * config.block_m) // unit_len)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
