"""The launch behind `advance_rows` on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.ops.advance_rows.kernel import advance_rows_kernel
from dlm_kernels.ops.advance_rows.reference import AdvancedRows, RowState
from dlm_kernels.ops.unmask_select.launch import rounded_threshold, tiling


def advance_rows(
    state: RowState,
    slots: Tensor,
    seq_lens: Tensor,
    chosen: Tensor,
    confidence: Tensor | None,
    *,
    is_strict: bool = False,
) -> AdvancedRows:
    """Launch the kernel. Args: see `dlm_kernels.ops.advance_rows.op.advance_rows`."""
    num_rows, width = chosen.shape
    device = chosen.device
    advanced = AdvancedRows(
        token_ids=torch.empty((num_rows, width), dtype=torch.int64, device=device),
        accept_lens=torch.empty(num_rows, dtype=torch.int64, device=device),
        new_seq_lens=torch.empty(num_rows, dtype=torch.int64, device=device),
        is_denoise=torch.empty(num_rows, dtype=torch.bool, device=device),
    )
    if num_rows == 0:
        return advanced
    floats = state.policy_floats
    if confidence is not None:
        floats = rounded_threshold(floats, confidence)
    tables = (state.canvas, state.is_masked, state.progress, state.policy_ints, floats, state.stop_ids)
    advance_rows_kernel[(num_rows,)](
        *tables,
        slots.contiguous(),
        seq_lens.contiguous(),
        chosen.contiguous(),
        None if confidence is None else confidence.contiguous(),
        *advanced,
        *(table.stride(0) for table in tables),
        width,
        state.stop_ids.shape[1],
        state.mask_token_id,
        state.context_length,
        IS_STRICT=is_strict,
        **tiling(width),
    )
    return advanced
