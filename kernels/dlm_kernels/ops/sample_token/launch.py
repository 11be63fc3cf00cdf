"""The launch behind `uniform_from_seed` on CUDA."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dlm_kernels.ops.sample_token.kernel import uniform_from_seed_kernel

BLOCK_N = 256


def uniform_from_seed(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Launch the kernel. Args: see `dlm_kernels.ops.sample_token.op.uniform_from_seed`."""
    uniform = torch.empty(seed.shape, dtype=torch.float64, device=seed.device)
    if seed.numel() > 0:
        grid = (triton.cdiv(seed.numel(), BLOCK_N),)
        seeds = (seed.contiguous(), position.contiguous(), step.contiguous())
        uniform_from_seed_kernel[grid](*seeds, uniform, seed.numel(), BLOCK_N=BLOCK_N)
    return uniform
