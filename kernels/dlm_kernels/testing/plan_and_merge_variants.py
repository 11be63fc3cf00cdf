"""Shipped variants of the kernels around block attention, to compile without a GPU: work list and merge.

All follow from the variants of block attention itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from dlm_kernels.ops.block_attention.plan import TILE_FIELDS, min_units
from dlm_kernels.testing.block_attention_variants import POINTER_TYPES, Variant, all_variants, unit_len
from dlm_kernels.testing.compile_spec import CompileSpec
from dlm_kernels.testing.gates import Gates
from dlm_kernels.testing.shipped_variant import ShippedVariant

# Rows of a forward and tiles of a work list are rounded up to powers of two, tiles up to `launch`'s 1024 at a time.
ROWS = tuple(1 << power for power in range(9))
TILES = tuple(1 << power for power in range(11))
# Several merge programs share a multiprocessor.
MIN_MERGES_PER_SM = 2


def tile_plan(tokens_per_tile: int, unit: int, num_rows: int) -> ShippedVariant:
    """The first launch of a work list; `num_rows` is a power of two."""
    pointers = "tile_ptr header_ptr row_lens_ptr kv_lens_ptr kv_limit_ptr".split()
    constexprs = {
        "TOKENS_PER_TILE": tokens_per_tile,
        "UNIT_LEN": unit,
        "TILE_FIELDS": TILE_FIELDS,
        "BLOCK_R": num_rows,
        "BLOCK_T": tokens_per_tile,
    }
    spec = CompileSpec(
        "block_attention.plan_kernel.tile_plan_kernel",
        dict.fromkeys(pointers, "*i32") | {"slots_ptr": "*i64", "num_rows": "i32", "num_tokens": "i32"},
        constexprs,
    )
    return ShippedVariant(f"tile_plan-tokens{tokens_per_tile}-unit{unit}-rows{num_rows}", spec)


def schedule(units: int, snap_divisor: int, num_tiles: int) -> ShippedVariant:
    """The second launch of a work list; `num_tiles` is a power of two."""
    pointers = "program_begin_ptr program_tile_ptr header_ptr tile_ptr".split()
    constexprs = {
        "NUM_KV_HEADS": 8,
        "MIN_UNITS": units,
        "SNAP_DIVISOR": snap_divisor,
        "TILE_FIELDS": TILE_FIELDS,
        "BLOCK_T": num_tiles,
    }
    spec = CompileSpec(
        "block_attention.plan_kernel.schedule_kernel",
        dict.fromkeys(pointers, "*i32") | {"num_tiles": "i32", "num_programs": "i32"},
        constexprs,
    )
    return ShippedVariant(f"schedule-units{units}-snap{snap_divisor}-tiles{num_tiles}", spec)


def merge(variant: Variant, has_scale: bool = False) -> ShippedVariant:
    """The merge that follows a variant of block attention; `has_scale`: the values' scale is on the device."""
    from dlm_kernels.ops.block_attention.launch import MERGE_ROWS

    names = "header_ptr tile_ptr".split()
    names += [] if variant.deterministic else "program_begin_ptr program_tile_ptr".split()
    signature = {"out_ptr": POINTER_TYPES[variant.dtype]} | dict.fromkeys(names, "*i32")
    signature |= {"partial_ptr": "*fp32", "partial_stat_ptr": "*fp32", "out_scale": "fp32"}
    signature |= {} if variant.deterministic else {"num_programs": "i32"}
    signature |= {"out_stride_token": "i32", "out_stride_head": "i32"}
    signature |= {"v_scale_ptr": "*fp32"} if has_scale else {}
    geometry = variant.geometry
    constexprs: dict[str, object] = {} if has_scale else {"v_scale_ptr": None}
    constexprs |= {
        "GROUP_SIZE": geometry.group_size,
        "V_HEAD_DIM": geometry.v_head_dim,
        "BLOCK_M": variant.config.block_m,
        "BLOCK_R": MERGE_ROWS,
        "TILE_FIELDS": TILE_FIELDS,
    }
    if variant.deterministic:
        constexprs["NUM_KV_HEADS"] = geometry.num_kv_heads
    name = "merge_units" if variant.deterministic else "merge_cuts"
    # The output's strides are products of head dims.
    aligned = tuple(key for key, kind in signature.items() if kind.startswith("*") or "stride" in key)
    spec = CompileSpec(f"block_attention.merge_kernel.{name}_kernel", signature, constexprs, aligned=aligned)
    dtype = str(variant.dtype).removeprefix("torch.")
    parts = [name, dtype, f"d{geometry.v_head_dim}", f"m{variant.config.block_m}", *["scale"] * has_scale]
    return ShippedVariant("-".join(parts), spec, Gates(min_blocks_per_sm=MIN_MERGES_PER_SM))


def all_plans() -> Iterator[ShippedVariant]:
    """Both launches of every work list, up to 256 rows."""
    from dlm_kernels.ops.block_attention.launch import SNAP_DIVISOR

    tiles: set[tuple[int, int]] = set()
    shares: set[tuple[int, int]] = set()
    for variant in all_variants():
        unit = unit_len(variant, variant.config)
        tiles.add((variant.config.block_m // variant.geometry.group_size, unit))
        shares.add((min_units(variant.config, unit), 0 if variant.deterministic else SNAP_DIVISOR))
    for (tokens_per_tile, unit), num_rows in product(sorted(tiles), ROWS):
        yield tile_plan(tokens_per_tile, unit, num_rows)
    for (units, snap_divisor), num_tiles in product(sorted(shares), TILES):
        yield schedule(units, snap_divisor, num_tiles)


def all_merges() -> Iterator[ShippedVariant]:
    """Every merge that follows a variant of block attention; page size and key dtype do not matter to it."""
    seen: set[str] = set()
    for variant, has_scale in product(all_variants(), (False, True)):
        made = merge(variant, has_scale)
        if made.name not in seen:
            seen.add(made.name)
            yield made
