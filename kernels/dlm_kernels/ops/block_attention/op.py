"""Block attention: argument checks and choice of implementation, nothing else."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from dlm_kernels.ops.block_attention import reference
from dlm_kernels.ops.block_attention.plan import (
    MAX_GROUP_SIZE,
    SUPPORTED_DTYPES,
    SUPPORTED_HEAD_DIMS,
    SUPPORTED_KV_DTYPES,
    SUPPORTED_PAGE_SIZES,
    KernelPlan,
)
from dlm_kernels.ops.block_attention.reference import ReferencePlan

BlockAttentionPlan: TypeAlias = ReferencePlan | KernelPlan
_INDEX_DTYPES = (torch.int32, torch.int64)


def make_plan(
    row_lens: Tensor,
    kv_lens: Tensor,
    kv_limit: Tensor,
    slots: Tensor,
    slot_table: Tensor,
    *,
    max_row_len: int,
    max_kv_len: int,
    page_size: int = 1,
    deterministic: bool = False,
    use_kernel: bool | None = None,
) -> BlockAttentionPlan:
    """Lay a ragged forward out once, for all layers.

    Args:
        row_lens: `[R]` int32, query tokens of each row; 0 for a padding row.
        kv_lens: `[R]` int32, keys of each row, own query tokens included.
        kv_limit: `[T]` int32, the token sees keys at row positions below it. Rows lie one after another; T may
            exceed the sum of `row_lens`, and the tokens past it belong to no row.
        slots: `[R]` int64, row of `slot_table` that each row uses.
        slot_table: `[S, C]` int32, pool slot of each position. The positions of a page are consecutive slots that
            start at a multiple of `page_size`; the kernel reads the entry of a page's first position only.
        max_row_len: upper bound of `row_lens`, known to the host; the kernel's grids are sized by it.
        max_kv_len: upper bound of `kv_lens`, at most C.
        page_size: positions of a page.
        deterministic: a token's result depends on its own query, keys and limit only, bit for bit, and not on the
            rows beside it. The reference ignores it.
        use_kernel: None: the Triton kernel for CUDA tensors, the reference for others. True with CPU tensors needs
            `TRITON_INTERPRET=1`.

    Returns:
        A plan for `block_attention`. The kernel path neither reads device memory from the host nor waits for it.

    Raises:
        ValueError: shapes or types that do not fit, or a page size that the kernel does not have.
    """
    num_rows = row_lens.numel()
    if kv_lens.numel() != num_rows or slots.numel() != num_rows:
        raise ValueError(
            f"row_lens, kv_lens and slots must have one entry per row, got {num_rows}, {kv_lens.numel()} and "
            f"{slots.numel()}"
        )
    for name, tensor in (("row_lens", row_lens), ("kv_lens", kv_lens), ("kv_limit", kv_limit), ("slots", slots)):
        if tensor.dim() != 1 or tensor.dtype not in _INDEX_DTYPES or tensor.device != slot_table.device:
            raise ValueError(
                f"{name} must be a 1-D int32 or int64 tensor on {slot_table.device}, got {tensor.dim()}-D "
                f"{tensor.dtype} on {tensor.device}"
            )
    if slot_table.dim() != 2 or max_kv_len > slot_table.shape[1]:
        raise ValueError(f"slot_table must be [S, >= {max_kv_len}], got {list(slot_table.shape)}")
    if not (slot_table.is_cuda if use_kernel is None else use_kernel):
        return reference.make_plan(row_lens, kv_lens, kv_limit, slots, slot_table)
    if page_size not in SUPPORTED_PAGE_SIZES:
        raise ValueError(f"page_size must be one of {SUPPORTED_PAGE_SIZES}, got {page_size}")
    if slot_table.stride(1) != 1:
        raise ValueError("the positions of a request must be contiguous in slot_table")
    return KernelPlan(
        row_lens=row_lens.contiguous(),
        kv_lens=kv_lens.contiguous(),
        kv_limit=kv_limit.contiguous(),
        slots=slots.contiguous(),
        slot_table=slot_table,
        max_row_len=max_row_len,
        max_kv_len=max_kv_len,
        page_size=page_size,
        deterministic=deterministic,
    )


def block_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: BlockAttentionPlan,
    scale: float,
    *,
    k_scale: float | Tensor | None = None,
    v_scale: float | Tensor | None = None,
) -> Tensor:
    """Attend from ragged query blocks to paged keys and values.

    Args:
        q: `[T, Hq, D]` queries, rows one after another; any strides.
        k_pool: `[slots, Hkv, D]` keys, this forward's own tokens already written. Hkv divides Hq.
        v_pool: `[slots, Hkv, Dv]` values, same dtype as the keys.
        plan: layout from `make_plan`.
        scale: softmax scale, above 0.
        k_scale: what stored keys are multiplied by (fp8 pools): a float, or one float32 on the device.
        v_scale: the same for values.

    Returns:
        `[T, Hq, Dv]`, dtype of `q`. 0 for a token that sees no key or belongs to no row.

    Raises:
        ValueError: shapes, strides or types that do not fit, or that the kernel does not have.

    Source: NLD report, attention patterns (spec section 2.1); grouped query heads are packed into one tile.
    """
    if q.shape[0] != plan.num_tokens or q.shape[1] % k_pool.shape[1] or q.shape[2] != k_pool.shape[2]:
        raise ValueError(
            f"q must be [{plan.num_tokens}, multiple of {k_pool.shape[1]}, {k_pool.shape[2]}] for this plan and "
            f"pool, got {list(q.shape)}"
        )
    if isinstance(plan, ReferencePlan):
        return reference.block_attention(q, k_pool, v_pool, plan, scale, k_scale=k_scale, v_scale=v_scale)
    _check_kernel_arguments(q, k_pool, v_pool, scale)
    from dlm_kernels.ops.block_attention.launch import run_kernel

    return run_kernel(q, k_pool, v_pool, plan, scale, k_scale, v_scale)


def _check_kernel_arguments(q: Tensor, k_pool: Tensor, v_pool: Tensor, scale: float) -> None:
    if q.dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"q must be one of {SUPPORTED_DTYPES}, got {q.dtype}")
    if k_pool.dtype not in SUPPORTED_KV_DTYPES or v_pool.dtype != k_pool.dtype:
        raise ValueError(f"pools must share one of {SUPPORTED_KV_DTYPES}, got {k_pool.dtype} and {v_pool.dtype}")
    if q.shape[2] not in SUPPORTED_HEAD_DIMS or v_pool.shape[2] not in SUPPORTED_HEAD_DIMS:
        raise ValueError(f"head dims must be in {SUPPORTED_HEAD_DIMS}, got {q.shape[2]} and {v_pool.shape[2]}")
    if q.shape[1] // k_pool.shape[1] > MAX_GROUP_SIZE:
        raise ValueError(
            f"at most {MAX_GROUP_SIZE} query heads may share a key head, got {q.shape[1]}/{k_pool.shape[1]}"
        )
    if k_pool.stride(2) != 1 or v_pool.stride(2) != 1:
        raise ValueError("the last dimension of the pools must be contiguous")
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
