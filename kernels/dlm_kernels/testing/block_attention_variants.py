"""Compile-time variants of the block-attention kernels, for offline compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from dlm_kernels.offline import OfflineKernel, compile_kernel
from dlm_kernels.ops.block_attention.plan import (
    DETERMINISTIC_CHUNK_LEN,
    SUPPORTED_HEAD_DIMS,
    SUPPORTED_PAGE_SIZES,
    TILE_FIELDS,
    Geometry,
    TileConfig,
    tile_config,
)

POINTER_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
}
_STRIDES = (
    "out_stride_token out_stride_head q_stride_token q_stride_head k_stride_slot k_stride_head v_stride_slot "
    "v_stride_head table_stride_row"
).split()


@dataclass(frozen=True)
class Variant:
    """One compiled shape of `block_attention_kernel`: 32 query heads on 8 key heads, as NLD has."""

    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype = torch.bfloat16
    head_dim: int = 128
    max_row_len: int = 32
    page_size: int = 1
    deterministic: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(32, 8, self.head_dim, self.head_dim, self.dtype, self.kv_dtype)

    @property
    def config(self) -> TileConfig:
        return tile_config(self.geometry, self.max_row_len, self.deterministic)

    @property
    def num_buffers(self) -> int:
        """Tiles of K, and of V, that the pipeliner should keep in shared memory."""
        is_fp8 = self.kv_dtype == torch.float8_e4m3fn
        uses_warp_groups = self.config.block_m >= 64 and not is_fp8
        return self.config.num_stages - (0 if uses_warp_groups else 1)

    def __str__(self) -> str:
        """Short name, as a test's id."""
        short = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8"}
        partition = "deterministic" if self.deterministic else "fast"
        return (
            f"{short[self.dtype]}-kv_{short[self.kv_dtype]}-d{self.head_dim}-m{self.config.block_m}"
            f"-page{self.page_size}-{partition}"
        )


def all_variants() -> Iterator[Variant]:
    """Every combination that can be launched, up to the number of heads."""
    dtypes = [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
    dtypes += [(torch.bfloat16, torch.float8_e4m3fn), (torch.float16, torch.float8_e4m3fn)]
    for (dtype, kv_dtype), head_dim, page_size in product(dtypes, SUPPORTED_HEAD_DIMS, SUPPORTED_PAGE_SIZES):
        yield Variant(dtype, kv_dtype, head_dim, 1, page_size, deterministic=True)
        seen = set()
        for max_row_len in (1, 8, 16, 32):
            variant = Variant(dtype, kv_dtype, head_dim, max_row_len, page_size)
            if variant.config not in seen:
                seen.add(variant.config)
                yield variant
    for head_dim, page_size, deterministic in product(SUPPORTED_HEAD_DIMS, SUPPORTED_PAGE_SIZES, (False, True)):
        yield Variant(torch.float32, torch.float32, head_dim, 1, page_size, deterministic)


def compile_attention(variant: Variant, config: TileConfig | None = None) -> OfflineKernel:
    """Compile a variant for sm_90, by default with the tile shape that it is launched with."""
    from dlm_kernels.ops.block_attention.kernel import block_attention_kernel

    config = config or variant.config
    pointer, kv_pointer = POINTER_TYPES[variant.dtype], POINTER_TYPES[variant.kv_dtype]
    signature = {"out_ptr": pointer, "q_ptr": pointer, "k_ptr": kv_pointer, "v_ptr": kv_pointer}
    index_pointers = "kv_limit_ptr slot_table_ptr header_ptr tile_ptr program_begin_ptr program_tile_ptr".split()
    signature |= dict.fromkeys(index_pointers, "*i32") | {"partial_ptr": "*fp32", "partial_stat_ptr": "*fp32"}
    aligned = [*signature, *_STRIDES]
    signature |= {"qk_scale": "fp32", "out_scale": "fp32", "num_tokens": "i32"} | dict.fromkeys(_STRIDES, "i32")
    geometry = variant.geometry
    constexprs = {
        "k_scale_ptr": None,
        "v_scale_ptr": None,
        "NUM_KV_HEADS": geometry.num_kv_heads,
        "GROUP_SIZE": geometry.group_size,
        "HEAD_DIM": geometry.head_dim,
        "V_HEAD_DIM": geometry.v_head_dim,
        "PAGE_SIZE": variant.page_size,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_H": geometry.num_q_heads,
        "UNIT_LEN": DETERMINISTIC_CHUNK_LEN if variant.deterministic else config.block_n,
        "TILE_FIELDS": TILE_FIELDS,
        "HAS_EQUAL_STRIDES": True,
        "IS_DETERMINISTIC": variant.deterministic,
    }
    options = {} if config.max_registers is None else {"maxnreg": config.max_registers}
    return compile_kernel(
        block_attention_kernel,
        signature,
        constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=aligned,
        options=options,
    )


def compile_plan_kernels(deterministic: bool) -> list[OfflineKernel]:
    """Compile both plan kernels."""
    from dlm_kernels.ops.block_attention.plan_kernel import schedule_kernel, tile_plan_kernel

    unit_len = DETERMINISTIC_CHUNK_LEN if deterministic else 64
    pointers = "tile_ptr header_ptr row_lens_ptr kv_lens_ptr kv_limit_ptr".split()
    tile_plan = compile_kernel(
        tile_plan_kernel,
        dict.fromkeys(pointers, "*i32") | {"slots_ptr": "*i64", "num_rows": "i32", "num_tokens": "i32"},
        {"TOKENS_PER_TILE": 32, "UNIT_LEN": unit_len, "TILE_FIELDS": TILE_FIELDS, "BLOCK_R": 64, "BLOCK_T": 32},
    )
    pointers = "program_begin_ptr program_tile_ptr header_ptr tile_ptr".split()
    constexprs = {"NUM_KV_HEADS": 8, "MIN_UNITS": 4, "SNAP_DIVISOR": 0 if deterministic else 8, "BLOCK_T": 1024}
    schedule = compile_kernel(
        schedule_kernel,
        dict.fromkeys(pointers, "*i32") | {"num_tiles": "i32", "num_programs": "i32"},
        constexprs | {"TILE_FIELDS": TILE_FIELDS},
    )
    return [tile_plan, schedule]


def compile_merge(variant: Variant) -> OfflineKernel:
    """Compile the merge that follows a variant."""
    from dlm_kernels.ops.block_attention.merge_kernel import merge_cuts_kernel, merge_units_kernel

    names = "header_ptr tile_ptr".split()
    names += [] if variant.deterministic else "program_begin_ptr program_tile_ptr".split()
    signature = {"out_ptr": POINTER_TYPES[variant.dtype]} | dict.fromkeys(names, "*i32")
    signature |= {"partial_ptr": "*fp32", "partial_stat_ptr": "*fp32", "v_scale_ptr": "*fp32", "out_scale": "fp32"}
    signature |= {} if variant.deterministic else {"num_programs": "i32"}
    signature |= {"out_stride_token": "i32", "out_stride_head": "i32"}
    geometry = variant.geometry
    constexprs: dict[str, object] = {
        "GROUP_SIZE": geometry.group_size,
        "V_HEAD_DIM": geometry.v_head_dim,
        "BLOCK_M": variant.config.block_m,
        "BLOCK_R": 8,
        "TILE_FIELDS": TILE_FIELDS,
    }
    if variant.deterministic:
        return compile_kernel(merge_units_kernel, signature, constexprs | {"NUM_KV_HEADS": geometry.num_kv_heads})
    return compile_kernel(merge_cuts_kernel, signature, constexprs)
