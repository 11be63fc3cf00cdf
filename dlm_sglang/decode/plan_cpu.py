"""`plan_round` in numpy: on a CPU its small operations cost more to call in torch than they compute.

Captured and padded rounds run the torch form, on a CPU too; tests hold both to each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm_sglang.decode.layout import RoundLayout
from dlm_sglang.decode.round import RoundInputs
from dlm_sglang.decode.state import DENOISE, PADDING_SLOT, BlockState, PolicyInts, Progress


def plan_round_on_cpu(
    state: BlockState, layout: RoundLayout, slots: Tensor, seq_lens: Tensor, *, may_cut: bool
) -> RoundInputs:
    """Gather what the mixed forward reads.

    Args and result: see `dlm_sglang.decode.round.plan_round`.
    """
    index, begins = slots.numpy(), seq_lens.numpy()
    progress = ints = draft_rows = is_padding = is_masked = None
    canvas = state.canvas.numpy()
    if layout.is_autoregressive:
        input_ids, positions, kv_lens = canvas[:, 0].take(index), begins, begins + 1
        kv_limit = kv_lens
        if layout.may_sample:
            progress, ints = state.progress_of(slots), state.ints_of(slots)
    else:
        row_of_token = layout.row_of_token.numpy()
        slot_of_token = index[row_of_token]
        progress = Progress(*_columns(state.progress, index))
        ints = PolicyInts(*_columns(state.policy_ints, index))
        is_denoise = progress.phase.numpy() == DENOISE
        offsets = layout.offset_of_token.numpy()
        input_ids = canvas[slot_of_token, offsets]
        if layout.ranks_masks:
            is_masked = torch.from_numpy(state.is_masked.numpy()[slot_of_token, offsets])
        positions = begins[row_of_token] + offsets
        kv_lens = begins + progress.length.numpy()
        kv_limit = np.maximum(positions + 1, np.where(is_denoise, kv_lens, 0)[row_of_token])
        if layout.may_draft:
            drafts = (is_denoise & (ints.uses_drafter.numpy() != 0)).astype(np.float32)
            draft_rows = torch.from_numpy(drafts[row_of_token])
    if may_cut:
        kv_lens = np.minimum(kv_lens, state.context_length)
        block_end = kv_lens if layout.is_autoregressive else kv_lens[layout.row_of_token.numpy()]
        is_padding = torch.from_numpy(positions >= block_end)
        positions = np.maximum(np.minimum(positions, block_end - 1), 0)
        kv_limit = np.minimum(kv_limit, block_end)
    return RoundInputs(
        layout=layout,
        slots=slots,
        seq_lens=seq_lens,
        progress=progress,
        ints=ints,
        kv_lens=torch.from_numpy(kv_lens),
        input_ids=torch.from_numpy(input_ids),
        positions=torch.from_numpy(positions),
        kv_limit=torch.from_numpy(kv_limit),
        is_padding=is_padding,
        draft_rows=draft_rows,
        is_masked=is_masked,
    )


def kv_slots_on_cpu(inputs: RoundInputs, req_to_token: Tensor) -> Tensor:
    """The KV slots `[T]` int64 of a round's query tokens.

    Args:
        inputs: of a round that is not padded.
        req_to_token: `[P, C]` int32, KV slot of each position of each request slot.
    """
    layout, slots = inputs.layout, inputs.slots.numpy()
    if not layout.is_autoregressive:
        slots = slots[layout.row_of_token.numpy()]
    kv_slots = req_to_token.numpy()[slots, inputs.positions.numpy()].astype(np.int64)
    if inputs.is_padding is not None:
        kv_slots[inputs.is_padding.numpy()] = PADDING_SLOT
    return torch.from_numpy(kv_slots)


def _columns(table: Tensor, index: npt.NDArray[np.int64]) -> list[Tensor]:
    """The columns of some rows of a table, `[R]` each."""
    return [torch.from_numpy(column) for column in table.numpy().take(index, axis=0).T]
