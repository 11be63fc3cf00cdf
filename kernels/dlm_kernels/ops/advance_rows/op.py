"""One round's effect on its rows: numpy on CPU, one program per row on CUDA."""

from __future__ import annotations

from torch import Tensor

from dlm_kernels.ops.advance_rows import cpu
from dlm_kernels.ops.advance_rows.reference import NO_HINTS, AdvancedRows, RowHints, RowState


def advance_rows(
    state: RowState,
    slots: Tensor,
    seq_lens: Tensor,
    chosen: Tensor,
    confidence: Tensor | None,
    *,
    is_strict: bool = False,
    hints: RowHints = NO_HINTS,
) -> AdvancedRows:
    """Advance every row by one round: unmask, accept, emit, begin the next block.

    Denoise rows fill masks (see `unmask_block`). Commit rows emit and begin their next block: a verified row emits the
    drafts that equal the verifier's choices and one token more, a row that accepts whole blocks emits its block.
    Emission ends at the first stop token and at the request's limit. A whole block that ends its request is emitted
    as soon as it is filled.

    Args:
        state: state of all slots; `canvas`, `is_masked` and `progress` of the rows' slots change in place.
        slots: `[R]` int64, all different; padding rows may share a slot that no request has.
        seq_lens: `[R]` int64, committed tokens before each block.
        chosen: `[R, L]` int64, the token chosen at each position of each block, L at most the width of the canvas.
        confidence: `[R, L]` float, how sure the model is of it; None fills every mask of every row in this step.
        is_strict: see `unmask_select`.
        hints: what is known of all rows; they must be true. The reference and the kernel do without.

    Returns:
        token_ids, accept_lens, new_seq_lens, is_denoise: see `AdvancedRows`.

    Raises:
        ValueError: shapes do not agree.

    Source: NLD spec sections 3.1 to 3.3.
    """
    if chosen.dim() != 2 or not 1 <= chosen.shape[1] <= state.canvas.shape[1]:
        raise ValueError(f"chosen must be [R, L] with L in 1..{state.canvas.shape[1]}, got {list(chosen.shape)}")
    num_rows = chosen.shape[0]
    if slots.shape != (num_rows,) or seq_lens.shape != (num_rows,):
        raise ValueError(f"slots and seq_lens must be [{num_rows}], got {list(slots.shape)} and {list(seq_lens.shape)}")
    if confidence is not None and confidence.shape != chosen.shape:
        raise ValueError(f"confidence must be {list(chosen.shape)}, got {list(confidence.shape)}")
    if chosen.is_cpu:
        return cpu.advance_rows(state, slots, seq_lens, chosen, confidence, is_strict=is_strict, hints=hints)
    from dlm_kernels.ops.advance_rows import launch

    return launch.advance_rows(state, slots, seq_lens, chosen, confidence, is_strict=is_strict)
