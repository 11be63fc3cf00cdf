"""Shipped variants of the block-attention kernel, to compile without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from dlm_kernels.ops.block_attention.plan import (
    DETERMINISTIC_CHUNK_LEN,
    SUPPORTED_HEAD_DIMS,
    SUPPORTED_PAGE_SIZES,
    TILE_FIELDS,
    Geometry,
    TileConfig,
    tile_config,
)
from dlm_kernels.testing.compile_spec import CompileSpec
from dlm_kernels.testing.gates import Gates
from dlm_kernels.testing.shipped_variant import ShippedVariant

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
    """One compiled shape of `block_attention_kernel`.

    As a server of NLD launches it: 32 query heads on 8 key heads, keys and values of one dim and alike in memory,
    scales of fp8 keys on the host.
    """

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
    """Every combination of dtypes, head dim, page size, tile shape and partition that can be launched."""
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


def shipped(variant: Variant) -> ShippedVariant:
    """How a variant is compiled, and its gates."""
    config = variant.config
    return ShippedVariant(
        str(variant),
        attention_spec(variant),
        Gates(
            min_blocks_per_sm=config.programs_per_sm,
            # K and V of the loop without a mask, then of the loop with one.
            pipeline_buffers=(variant.num_buffers,) * 4,
        ),
        tile=(config.block_n, variant.head_dim),
    )


def attention_spec(variant: Variant, config: TileConfig | None = None) -> CompileSpec:
    """The variant as it is launched, or with another tile shape."""
    config = config or variant.config
    pointer, kv_pointer = POINTER_TYPES[variant.dtype], POINTER_TYPES[variant.kv_dtype]
    signature = {"out_ptr": pointer, "q_ptr": pointer, "k_ptr": kv_pointer, "v_ptr": kv_pointer}
    index_pointers = "kv_limit_ptr slot_table_ptr header_ptr tile_ptr program_begin_ptr program_tile_ptr".split()
    signature |= dict.fromkeys(index_pointers, "*i32") | {"partial_ptr": "*fp32", "partial_stat_ptr": "*fp32"}
    aligned = (*signature, *_STRIDES)
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
        "UNIT_LEN": unit_len(variant, config),
        "TILE_FIELDS": TILE_FIELDS,
        "HAS_EQUAL_STRIDES": True,
        "IS_DETERMINISTIC": variant.deterministic,
    }
    return CompileSpec(
        "block_attention.kernel.block_attention_kernel",
        signature,
        constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        aligned=aligned,
        options={} if config.max_registers is None else {"maxnreg": config.max_registers},
    )


def unit_len(variant: Variant, config: TileConfig) -> int:
    """Keys of a unit of the work list."""
    return DETERMINISTIC_CHUNK_LEN if variant.deterministic else config.block_n
