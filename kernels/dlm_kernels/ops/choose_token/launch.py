"""The launches behind `choose_token` on CUDA."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dlm_kernels.ops.choose_token.kernel import choose_token_scan_kernel
from dlm_kernels.ops.choose_token.merge_kernel import choose_token_merge_kernel
from dlm_kernels.ops.sample_token.rows import SamplingRows

# A split does not depend on the number of rows: a row's sums, and so its last bit, are its own.
SPLIT_LENGTH = 16384
GROUPS = 512
BLOCK_V = 2048
NUM_WARPS = 4
# Bits of float32 that a logit of the dtype has not; see `order_key`.
KEY_SHIFTS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


def merge_block(num_splits: int) -> int:
    """BLOCK_S of `choose_token_merge_kernel`."""
    # One lane spills where rows sample: the assembler then goes for a fifth block on a multiprocessor.
    return max(int(triton.next_power_of_2(num_splits)), 2)


def choose_token(
    logits: Tensor,
    *,
    excluded_token_id: int,
    sampling: SamplingRows | None = None,
    is_settled: Tensor | None = None,
    needs_confidence: bool | Tensor = True,
    counts_excluded: bool = True,
    confidence_dtype: torch.dtype = torch.float64,
    split_length: int = SPLIT_LENGTH,
    groups: int = GROUPS,
    block_v: int = BLOCK_V,
) -> tuple[Tensor, Tensor]:
    """Launch the scan and the merge.

    Args: see `dlm_kernels.ops.choose_token.op.choose_token`; the last three are the tiling, for tests and tuning.
    """
    num_rows, vocab_size = logits.shape
    wants_sums = isinstance(needs_confidence, Tensor) or needs_confidence
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    # The merge writes the confidences of all rows where any are wanted.
    empty_or_zeros = torch.empty if wants_sums else torch.zeros
    confidence = empty_or_zeros(num_rows, dtype=confidence_dtype, device=logits.device)
    if num_rows == 0:
        return token_ids, confidence
    num_splits = triton.cdiv(vocab_size, split_length)

    def part(dtype: torch.dtype) -> Tensor:
        return torch.empty((num_rows, num_splits), dtype=dtype, device=logits.device)

    best, ids = part(torch.float32), part(torch.int32)
    odds = part(torch.float32) if wants_sums else None
    mass = part(torch.float32) if sampling is not None else None
    choose_token_scan_kernel[(num_rows, num_splits)](
        logits,
        logits.stride(0),
        None if sampling is None else sampling.temperature.contiguous(),
        is_settled,
        best,
        odds,
        mass,
        ids,
        vocab_size,
        excluded_token_id,
        split_length,
        num_splits,
        GROUPS=groups,
        WIDTH=16 // logits.element_size(),
        SUMS=wants_sums,
        num_warps=NUM_WARPS,
    )
    fields = ("temperature", "top_k", "top_p", "min_p", "uniform")
    choose_token_merge_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        *(None if sampling is None else getattr(sampling, field).contiguous() for field in fields),
        is_settled,
        needs_confidence if isinstance(needs_confidence, Tensor) else None,
        best,
        odds,
        mass,
        ids,
        token_ids,
        confidence,
        vocab_size,
        excluded_token_id,
        split_length,
        num_splits,
        BLOCK_S=merge_block(num_splits),
        BLOCK_V=block_v,
        KEY_SHIFT=KEY_SHIFTS[logits.dtype],
        SUMS=wants_sums,
        COUNTS_EXCLUDED=counts_excluded,
        num_warps=NUM_WARPS,
    )
    return token_ids, confidence
