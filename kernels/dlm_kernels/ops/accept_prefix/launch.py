"""The launches behind `accept_prefix` and `accept_rejection` on CUDA."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dlm_kernels.ops.accept_prefix.kernel import accept_prefix_kernel, accept_rejection_kernel, verify_rows_kernel
from dlm_kernels.ops.choose_token.launch import BLOCK_V, GROUPS, KEY_SHIFTS, NUM_WARPS
from dlm_kernels.ops.sample_token.rows import SamplingRows


def prefix_block(length: int) -> int:
    """BLOCK_L of `accept_prefix_kernel` for up to `length` drafts: one more than they are ends every run."""
    return int(triton.next_power_of_2(length + 1))


def rejection_block(length: int) -> int:
    """BLOCK_L of `accept_rejection_kernel` for up to `length` drafts."""
    # One lane for no draft at all spills: the assembler then goes for a sixth block on a multiprocessor.
    return max(prefix_block(length), 2)


def accept_prefix(draft_ids: Tensor, target_ids: Tensor, num_drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel. Args: see `dlm_kernels.ops.accept_prefix.op.accept_prefix`."""
    num_rows, length = draft_ids.shape
    num_correct_drafts = torch.empty(num_rows, dtype=torch.int64, device=draft_ids.device)
    bonus_ids = torch.empty_like(num_correct_drafts)
    draft_ids, target_ids = (ids if ids.stride(1) == 1 else ids.contiguous() for ids in (draft_ids, target_ids))
    if num_rows > 0:
        accept_prefix_kernel[(num_rows,)](
            draft_ids,
            target_ids,
            num_drafts.contiguous(),
            num_correct_drafts,
            bonus_ids,
            draft_ids.stride(0),
            target_ids.stride(0),
            BLOCK_L=prefix_block(length),
            num_warps=1,
        )
    return num_correct_drafts, bonus_ids


def accept_rejection(
    draft_ids: Tensor,
    draft_probs: Tensor | None,
    logits: Tensor,
    first_row: Tensor,
    num_drafts: Tensor,
    *,
    sampling: SamplingRows,
    accept_uniform: Tensor,
    excluded_token_id: int,
    groups: int = GROUPS,
    block_v: int = BLOCK_V,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels.

    Args: see `dlm_kernels.ops.accept_prefix.op.accept_rejection`; the last two are the tiling, for tests and tuning.
    """
    num_rows, length = draft_ids.shape
    device = draft_ids.device
    num_correct_drafts = torch.empty(num_rows, dtype=torch.int64, device=device)
    bonus_ids = torch.empty_like(num_correct_drafts)
    if num_rows == 0:
        return num_correct_drafts, bonus_ids
    # row_max, pivot, last_tie, mass, best_id of every verifier row
    dtypes = (torch.float32, torch.int64, torch.int32, torch.float64, torch.int32)
    states = [torch.empty((num_rows, length + 1), dtype=dtype, device=device) for dtype in dtypes]
    is_accepted = torch.empty((num_rows, length), dtype=torch.bool, device=device)
    has_probs = draft_probs is not None and length > 0
    shared = (
        draft_ids.contiguous(),
        draft_probs.contiguous() if draft_probs is not None and has_probs else logits,
        logits,
        logits.stride(0),
        first_row.contiguous(),
        num_drafts.contiguous(),
        sampling.temperature.contiguous(),
    )
    constants = {"BLOCK_V": block_v, "KEY_SHIFT": KEY_SHIFTS[logits.dtype], "HAS_PROBS": has_probs}
    verify_rows_kernel[(num_rows, length + 1)](
        *shared,
        sampling.top_k.contiguous(),
        sampling.top_p.contiguous(),
        sampling.min_p.contiguous(),
        accept_uniform.contiguous(),
        *states,
        is_accepted,
        logits.shape[1],
        excluded_token_id,
        length,
        GROUPS=groups,
        WIDTH=16 // logits.element_size(),
        **constants,
        num_warps=NUM_WARPS,
    )
    accept_rejection_kernel[(num_rows,)](
        *shared,
        sampling.min_p.contiguous(),
        sampling.uniform.contiguous(),
        *states,
        is_accepted,
        num_correct_drafts,
        bonus_ids,
        logits.shape[1],
        excluded_token_id,
        length,
        BLOCK_L=rejection_block(length),
        **constants,
        num_warps=NUM_WARPS,
    )
    return num_correct_drafts, bonus_ids
