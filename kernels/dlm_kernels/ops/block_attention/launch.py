"""Launches of the block-attention kernels. Nothing here reads the device from the host."""

from __future__ import annotations

from math import e, log2

import torch
import triton
from torch import Tensor

from dlm_kernels.ops.block_attention import kernel, merge_kernel, plan_kernel
from dlm_kernels.ops.block_attention.plan import (
    TILE_FIELDS,
    Geometry,
    KernelPlan,
    WorkList,
    allocate_work_list,
    min_units,
)

LOG2_E = log2(e)
# Triton's interpreter has no multiprocessors: few programs, so that it stays quick and still has to cut tiles.
INTERPRETER_SMS = 3
# A cut within this part of a program's share from a tile's edge moves there.
SNAP_DIVISOR = 8
# Rows of a merge program, and programs per multiprocessor of the deterministic merge.
MERGE_ROWS, MERGE_PROGRAMS_PER_SM = 8, 4


def make_work_list(plan: KernelPlan, geometry: Geometry) -> WorkList:
    """Distribute the forward over the grid: two small launches."""
    work = allocate_work_list(plan, geometry, _num_sms(plan.kv_limit.device))
    tokens_per_tile = work.config.block_m // geometry.group_size
    num_tiles = work.tiles.shape[0]
    num_rows = plan.row_lens.numel()
    plan_kernel.tile_plan_kernel[(num_tiles,)](
        work.tiles,
        work.header,
        plan.row_lens,
        plan.kv_lens,
        plan.kv_limit,
        plan.slots,
        num_rows,
        plan.num_tokens,
        TOKENS_PER_TILE=tokens_per_tile,
        UNIT_LEN=work.unit_len,
        TILE_FIELDS=TILE_FIELDS,
        BLOCK_R=triton.next_power_of_2(num_rows),
        BLOCK_T=triton.next_power_of_2(tokens_per_tile),
        num_warps=4,
    )
    plan_kernel.schedule_kernel[(work.num_programs + 1,)](
        work.program_begin,
        work.program_tile,
        work.header,
        work.tiles,
        num_tiles,
        work.num_programs,
        NUM_KV_HEADS=geometry.num_kv_heads,
        MIN_UNITS=min_units(work.config, work.unit_len),
        SNAP_DIVISOR=0 if plan.deterministic else SNAP_DIVISOR,
        TILE_FIELDS=TILE_FIELDS,
        BLOCK_T=min(triton.next_power_of_2(num_tiles), 1024),
        num_warps=4,
    )
    return work


def run_kernel(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: KernelPlan,
    scale: float,
    k_scale: float | Tensor | None,
    v_scale: float | Tensor | None,
) -> Tensor:
    """`op.block_attention` on the device: the persistent kernel, then the merge of what it cut."""
    geometry = Geometry(q.shape[1], k_pool.shape[1], q.shape[2], v_pool.shape[2], q.dtype, k_pool.dtype)
    work = plan.work_lists.get(geometry)
    if work is None:
        work = plan.work_lists[geometry] = make_work_list(plan, geometry)
    q = q if q.stride(2) == 1 else q.contiguous()
    out = torch.empty((q.shape[0], q.shape[1], v_pool.shape[2]), dtype=q.dtype, device=q.device)
    qk_scale, k_scale_tensor = _split_scale(scale * LOG2_E, k_scale)
    out_scale, v_scale_tensor = _split_scale(1.0, v_scale)
    config = work.config
    kernel.block_attention_kernel[(work.num_programs,)](
        out,
        q,
        k_pool,
        v_pool,
        plan.kv_limit,
        plan.slot_table,
        work.header,
        work.tiles,
        work.program_begin,
        work.program_tile,
        work.partial,
        work.partial_stat,
        k_scale_tensor,
        v_scale_tensor,
        qk_scale,
        out_scale,
        q.shape[0],
        out.stride(0),
        out.stride(1),
        q.stride(0),
        q.stride(1),
        k_pool.stride(0),
        k_pool.stride(1),
        v_pool.stride(0),
        v_pool.stride(1),
        plan.slot_table.stride(0),
        NUM_KV_HEADS=geometry.num_kv_heads,
        GROUP_SIZE=geometry.group_size,
        HEAD_DIM=geometry.head_dim,
        V_HEAD_DIM=geometry.v_head_dim,
        PAGE_SIZE=plan.page_size,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_H=triton.next_power_of_2(geometry.num_q_heads),
        UNIT_LEN=work.unit_len,
        TILE_FIELDS=TILE_FIELDS,
        HAS_EQUAL_STRIDES=k_pool.stride() == v_pool.stride() and k_pool.shape == v_pool.shape,
        IS_DETERMINISTIC=plan.deterministic,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        maxnreg=config.max_registers,
    )
    if plan.max_kv_len > work.unit_len:
        _merge(out, plan, geometry, work, out_scale, v_scale_tensor)
    return out


def _merge(
    out: Tensor, plan: KernelPlan, geometry: Geometry, work: WorkList, out_scale: float, v_scale: Tensor | None
) -> None:
    row_slices = work.config.block_m // MERGE_ROWS
    shape = {
        "GROUP_SIZE": geometry.group_size,
        "V_HEAD_DIM": geometry.v_head_dim,
        "BLOCK_M": work.config.block_m,
        "BLOCK_R": MERGE_ROWS,
        "TILE_FIELDS": TILE_FIELDS,
    }
    if plan.deterministic:
        items = work.tiles.shape[0] * geometry.num_kv_heads
        grid = (min(items, _num_sms(out.device) * MERGE_PROGRAMS_PER_SM), row_slices)
        merge_kernel.merge_units_kernel[grid](
            out,
            work.header,
            work.tiles,
            work.partial,
            work.partial_stat,
            v_scale,
            out_scale,
            out.stride(0),
            out.stride(1),
            NUM_KV_HEADS=geometry.num_kv_heads,
            **shape,
        )
    elif work.num_programs > 1:
        merge_kernel.merge_cuts_kernel[(work.num_programs - 1, row_slices)](
            out,
            work.header,
            work.tiles,
            work.program_begin,
            work.program_tile,
            work.partial,
            work.partial_stat,
            v_scale,
            out_scale,
            work.num_programs,
            out.stride(0),
            out.stride(1),
            **shape,
        )


def _split_scale(scale: float, factor: float | Tensor | None) -> tuple[float, Tensor | None]:
    """A factor on the host is multiplied in, one on the device stays there and is read by the kernel."""
    if factor is None:
        return scale, None
    if isinstance(factor, Tensor):
        return scale, factor
    return scale * factor, None


def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
