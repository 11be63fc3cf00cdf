"""One scheduler iteration: what the mixed forward reads, and what its logits do to every row.

Nothing here waits for the device: shapes follow from the host's `RoundLayout`, everything else stays in tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from dlm_kernels.ops.advance_rows import advance_rows
from torch import Tensor

from dlm_sglang.decode.choose import choose_tokens
from dlm_sglang.decode.layout import RoundLayout
from dlm_sglang.decode.logprobs import RoundLogprobs
from dlm_sglang.decode.state import DENOISE, BlockState, PolicyInts, Progress

if TYPE_CHECKING:
    from dlm_sglang.decode.controlled import RoundControls


@dataclass(frozen=True)
class RoundInputs:
    """One mixed forward over R rows with T query tokens, rows one after another.

    Attributes:
        layout: where the tokens lie.
        slots: `[R]` int64, request slots.
        seq_lens: `[R]` int64, committed tokens before the block.
        progress, ints: the rows' state and policies, gathered; None where every row is greedy and autoregressive.
        kv_lens: `[R]` int64, keys of each row, its block included.
        input_ids, positions: `[T]` int64.
        kv_limit: `[T]` int64, keys at positions below it are visible.
        is_padding: `[T]` bool, tokens past the end of a block that the context cut; None where there are none.
        draft_rows: `[T]` float32, 1 where the drafter adapter applies, or None where no row can be a draft.
        is_masked: `[T]` bool, positions whose confidences are compared; None asks for none where `layout.ranks_masks`
            is false, else for all: a kernel makes them in the same pass.
    """

    layout: RoundLayout
    slots: Tensor
    seq_lens: Tensor
    progress: Progress | None
    ints: PolicyInts | None
    kv_lens: Tensor
    input_ids: Tensor
    positions: Tensor
    kv_limit: Tensor
    is_padding: Tensor | None
    draft_rows: Tensor | None
    is_masked: Tensor | None = None


@dataclass(frozen=True)
class RoundOutputs:
    """What a round emitted.

    Attributes:
        token_ids: `[R, L]` int64, the first `accept_lens` of each row count.
        accept_lens: `[R]` int64, new tokens per row, 0 for a row that still denoises.
        new_seq_lens: `[R]` int64, tokens before the next block.
        is_denoise: `[R]` bool, the round was a denoise forward for the row; None where no row can be one. A
            denoise row that emits ends its request, and the KV of what it emitted is scratch: it must not reach
            the prefix cache.
        logprobs: of the rows that return them, or None.
    """

    token_ids: Tensor
    accept_lens: Tensor
    new_seq_lens: Tensor
    is_denoise: Tensor | None
    logprobs: RoundLogprobs | None = None


def plan_round(
    state: BlockState, layout: RoundLayout, slots: Tensor, seq_lens: Tensor, *, may_cut: bool
) -> RoundInputs:
    """Gather what the mixed forward reads.

    Args:
        state: block state.
        layout: of these rows.
        slots, seq_lens: `[R]` int64.
        may_cut: some row may be so near the context's end that its block does not fit.

    Source: one-block-two-forwards scheme, spec sections 2.1 to 2.3.
    """
    progress = ints = draft_rows = None
    if layout.is_autoregressive:
        input_ids, positions, kv_lens = state.canvas[slots, 0], seq_lens, seq_lens + 1
        kv_limit = kv_lens
        if layout.may_sample:
            progress, ints = state.progress_of(slots), state.ints_of(slots)
    else:
        progress, ints = state.progress_of(slots), state.ints_of(slots)
        is_denoise = progress.phase == DENOISE
        input_ids = layout.per_block(state.canvas[slots, : layout.max_width])
        positions = layout.per_token(seq_lens) + layout.offset_of_token
        kv_lens = seq_lens + progress.length
        kv_limit = torch.maximum(positions + 1, layout.per_token(torch.where(is_denoise, kv_lens, 0)))
        if layout.may_draft:
            draft_rows = layout.per_token((is_denoise & ints.uses_drafter.bool()).float())
    is_padding = None
    if may_cut:
        kv_lens = kv_lens.clamp(max=state.context_length)
        block_end = layout.per_token(kv_lens)
        is_padding = positions >= block_end
        positions = torch.minimum(positions, block_end - 1).clamp(min=0)
        kv_limit = torch.minimum(kv_limit, block_end)
    return RoundInputs(
        layout=layout,
        slots=slots,
        seq_lens=seq_lens,
        progress=progress,
        ints=ints,
        kv_lens=kv_lens,
        input_ids=input_ids,
        positions=positions,
        kv_limit=kv_limit,
        is_padding=is_padding,
        draft_rows=draft_rows,
    )


def advance_round(
    state: BlockState, inputs: RoundInputs, logits: Tensor, controls: RoundControls | None = None
) -> RoundOutputs:
    """Turn the logits of a mixed forward into tokens and every row's next phase.

    Denoise rows fill masks; commit rows emit and start their next block (see `advance_rows`).

    Args:
        state: block state, changed in place.
        inputs: what the forward read.
        logits: `[T, V]` float, row i of a denoise row predicts position i, of a commit row position i + 1; changed
            in place where rows have controls.
        controls: what some rows ask for beyond sampling.

    Source: spec sections 3.1 (AR), 3.2 (diffusion), 3.3 (linear self-speculation).
    """
    if controls is None:
        return _advance(state, inputs, *choose_tokens(state, inputs, logits))
    raw = None if controls.logprobs is None else controls.logprobs.raw(logits)
    outputs = _advance(state, inputs, *controls.choose(state, inputs, logits))
    if controls.rows is not None:
        controls.rows.remember(outputs.token_ids, outputs.accept_lens)
    if controls.logprobs is None or raw is None:
        return outputs
    return replace(outputs, logprobs=controls.logprobs.of_outputs(raw, outputs))


def _advance(state: BlockState, inputs: RoundInputs, token_ids: Tensor, confidence: Tensor) -> RoundOutputs:
    layout = inputs.layout
    advanced = advance_rows(
        state.rows,
        inputs.slots,
        inputs.seq_lens,
        layout.per_position(token_ids),
        # Without: every row fills its block in one step, and nobody asks how sure the model is.
        layout.per_position(confidence) if layout.ranks_masks else None,
        hints=layout.hints,
    )
    return RoundOutputs(
        advanced.token_ids,
        advanced.accept_lens,
        advanced.new_seq_lens,
        None if layout.is_autoregressive else advanced.is_denoise,
    )
