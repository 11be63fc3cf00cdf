"""The launches behind `unmask_select` and `unmask_block` on CUDA."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dlm_kernels.ops.unmask_select.kernel import unmask_block_kernel, unmask_select_kernel
from dlm_kernels.ops.unmask_select.reference import UnmaskedBlock

# Positions that are compared with all others at once.
CHUNK = 16


def tiling(block_length: int) -> dict[str, int]:
    """Sizes and warps of a program that works on one block."""
    block_l = max(CHUNK, triton.next_power_of_2(block_length))
    # Two warps spill at 64 positions.
    return {"BLOCK_L": block_l, "CHUNK": CHUNK, "num_warps": 1 if block_l <= 32 else 4}


def rounded_threshold(confidence_threshold: Tensor, confidence: Tensor) -> Tensor:
    """The threshold as float32, with no more precision than the confidence that it is compared with."""
    if confidence.dtype.itemsize < 4:
        return confidence_threshold.to(confidence.dtype).float()
    return confidence_threshold


def unmask_select(
    is_masked: Tensor,
    confidence: Tensor,
    confidence_threshold: Tensor,
    quota: Tensor,
    fill_all: Tensor,
    *,
    is_strict: bool = False,
) -> Tensor:
    """Launch the kernel. Args: see `dlm_kernels.ops.unmask_select.op.unmask_select`."""
    filled = torch.empty(is_masked.shape, dtype=torch.bool, device=is_masked.device)
    if filled.numel() > 0:
        inputs = (is_masked, confidence, rounded_threshold(confidence_threshold, confidence), quota, fill_all)
        unmask_select_kernel[(is_masked.shape[0],)](
            *(value.contiguous() for value in inputs),
            filled,
            is_masked.shape[1],
            IS_STRICT=is_strict,
            **tiling(is_masked.shape[1]),
        )
    return filled


def unmask_block(
    canvas: Tensor,
    is_masked: Tensor,
    chosen: Tensor,
    confidence: Tensor,
    *,
    row_lens: Tensor,
    step: Tensor,
    max_denoising_steps: Tensor,
    confidence_threshold: Tensor,
    is_seeded: Tensor,
    accepts_whole_block: Tensor,
    stop_ids: Tensor,
    remaining: Tensor,
    is_denoise: Tensor,
    is_strict: bool = False,
) -> UnmaskedBlock:
    """Launch the kernel. Args: see `dlm_kernels.ops.unmask_select.op.unmask_block`."""
    num_rows, length = canvas.shape
    device = canvas.device
    after = UnmaskedBlock(
        canvas=torch.empty((num_rows, length), dtype=torch.int64, device=device),
        still_masked=torch.empty((num_rows, length), dtype=torch.bool, device=device),
        is_filled=torch.empty(num_rows, dtype=torch.bool, device=device),
        ends_request=torch.empty(num_rows, dtype=torch.bool, device=device),
    )
    inputs = (
        canvas,
        is_masked,
        chosen,
        confidence,
        row_lens,
        step,
        max_denoising_steps,
        rounded_threshold(confidence_threshold, confidence),
        is_seeded,
        accepts_whole_block,
        stop_ids,
        remaining,
        is_denoise,
    )
    if num_rows > 0:
        unmask_block_kernel[(num_rows,)](
            *(value.contiguous() for value in inputs),
            *after,
            length,
            stop_ids.shape[1],
            IS_STRICT=is_strict,
            **tiling(length),
        )
    return after
