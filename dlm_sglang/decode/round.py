"""One scheduler iteration: what the mixed forward reads, and what its logits do to every row.

Nothing here waits for the device: shapes follow from the host's `RoundLayout`, everything else stays in tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dlm_kernels.ops.accept_prefix import accept_prefix
from dlm_kernels.ops.sample_token import confidence_of
from dlm_kernels.ops.unmask_select import unmask_select
from torch import Tensor

from dlm_sglang.decode.choose import choose_tokens
from dlm_sglang.decode.layout import RoundLayout
from dlm_sglang.decode.state import (
    DENOISE,
    BlockState,
    PolicyFloats,
    PolicyInts,
    Progress,
    fresh_blocks,
)


@dataclass(frozen=True)
class RoundInputs:
    """One mixed forward over R rows with T query tokens, rows one after another.

    Attributes:
        layout: where the tokens lie.
        slots: `[R]` int64, request slots.
        seq_lens: `[R]` int64, committed tokens before the block.
        progress, ints: the rows' state and policies, gathered.
        canvas: `[R, L]` int64, blocks as they stand; column 0 alone where every row is autoregressive.
        kv_lens: `[R]` int64, keys of each row, its block included.
        input_ids, positions: `[T]` int64.
        kv_limit: `[T]` int64, keys at positions below it are visible.
        is_padding: `[T]` bool, tokens past the end of a block that the context cut; None where there are none.
        draft_rows: `[T]` float32, 1 where the drafter adapter applies, or None where no row can be a draft.
    """

    layout: RoundLayout
    slots: Tensor
    seq_lens: Tensor
    progress: Progress
    ints: PolicyInts
    canvas: Tensor
    kv_lens: Tensor
    input_ids: Tensor
    positions: Tensor
    kv_limit: Tensor
    is_padding: Tensor | None
    draft_rows: Tensor | None


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
    """

    token_ids: Tensor
    accept_lens: Tensor
    new_seq_lens: Tensor
    is_denoise: Tensor | None


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
    progress, ints = state.progress_of(slots), state.ints_of(slots)
    canvas = state.canvas[slots, : layout.max_width]
    is_denoise = progress.phase == DENOISE
    kv_lens = seq_lens + (1 if layout.is_autoregressive else progress.length)
    if layout.is_autoregressive:
        input_ids, positions, kv_limit = canvas[:, 0], seq_lens, kv_lens
    elif layout.is_uniform:
        input_ids = canvas.reshape(-1)
        positions = (seq_lens[:, None] + state.offsets[: layout.max_width]).view(-1)
        kv_limit = torch.maximum(positions + 1, layout.per_token(torch.where(is_denoise, kv_lens, 0)))
    else:
        input_ids = canvas[layout.row_of_token, layout.offset_of_token]
        positions = seq_lens[layout.row_of_token] + layout.offset_of_token
        kv_limit = torch.maximum(positions + 1, layout.per_token(torch.where(is_denoise, kv_lens, 0)))
    is_padding = None
    if may_cut:
        kv_lens = kv_lens.clamp(max=state.context_length)
        block_end = layout.per_token(kv_lens)
        is_padding = positions >= block_end
        positions = torch.minimum(positions, block_end - 1).clamp(min=0)
        kv_limit = torch.minimum(kv_limit, block_end)
    draft_rows = None
    if layout.may_draft:
        draft_rows = layout.per_token((is_denoise & ints.uses_drafter.bool()).float())
    return RoundInputs(
        layout=layout,
        slots=slots,
        seq_lens=seq_lens,
        progress=progress,
        ints=ints,
        canvas=canvas,
        kv_lens=kv_lens,
        input_ids=input_ids,
        positions=positions,
        kv_limit=kv_limit,
        is_padding=is_padding,
        draft_rows=draft_rows,
    )


def advance_round(state: BlockState, inputs: RoundInputs, logits: Tensor) -> RoundOutputs:
    """Turn the logits of a mixed forward into tokens and every row's next phase.

    Denoise rows fill masks; commit rows emit and start their next block. Emission is cut at the first stop
    token and at the request's token limit. A whole block that ends its request is emitted as soon as it is
    filled: its commit would only write KV that nobody reads.

    Args:
        state: block state, changed in place.
        inputs: what the forward read.
        logits: `[T, V]` float, row i of a denoise row predicts position i, of a commit row position i + 1.

    Source: spec sections 3.1 (AR), 3.2 (diffusion), 3.3 (linear self-speculation).
    """
    layout, slots, progress, ints = inputs.layout, inputs.slots, inputs.progress, inputs.ints
    is_denoise = progress.phase == DENOISE
    floats = state.floats_of(slots) if layout.ranks_masks or layout.sampled_tokens is not None else None
    token_ids = choose_tokens(state, inputs, floats, logits)
    if layout.is_autoregressive:
        return _advance_autoregressive(state, inputs, token_ids)
    chosen = layout.per_position(token_ids)
    is_masked = state.is_masked[slots, : layout.max_width]
    confidence = layout.per_position(confidence_of(logits.float(), token_ids)) if layout.ranks_masks else None
    filled = _filled_positions(inputs, floats, is_masked, confidence)
    canvas = torch.where(filled, chosen, inputs.canvas)
    still_masked = is_masked & ~filled
    is_filled, ends_request = _block_outcome(state, inputs, canvas, still_masked)

    emitted, accept_lens, seed_ids = _emission(state, inputs, canvas, chosen, is_denoise, ends_request)
    new_seq_lens = inputs.seq_lens + accept_lens
    fresh = fresh_blocks(state, ints, seed_ids, new_seq_lens, progress.remaining - accept_lens, layout.max_width)
    keep = is_denoise[:, None]
    state.canvas[slots, : layout.max_width] = torch.where(keep, canvas, fresh.canvas)
    state.is_masked[slots, : layout.max_width] = torch.where(keep, still_masked, fresh.is_masked)
    # COMMIT is 1: a filled block goes there.
    going_on = Progress(progress.length, is_filled.long(), progress.step + 1, fresh.progress.remaining)
    state.progress[slots] = torch.where(keep, torch.stack(going_on, dim=1), torch.stack(fresh.progress, dim=1))
    return RoundOutputs(emitted, accept_lens, new_seq_lens, is_denoise)


def _advance_autoregressive(state: BlockState, inputs: RoundInputs, token_ids: Tensor) -> RoundOutputs:
    """The round when every row is autoregressive: one token each, no block to lay out."""
    remaining = inputs.progress.remaining
    accept_lens = remaining.clamp(0, 1)
    state.canvas[inputs.slots, 0] = token_ids
    state.progress[inputs.slots, -1] = remaining - accept_lens
    return RoundOutputs(token_ids[:, None], accept_lens, inputs.seq_lens + accept_lens, None)


def _filled_positions(
    inputs: RoundInputs, floats: PolicyFloats | None, is_masked: Tensor, confidence: Tensor | None
) -> Tensor:
    """The masked positions that this step fills, `[R, L]` bool."""
    if floats is None or confidence is None:
        # Every row fills its block in one step.
        return is_masked
    progress, max_steps = inputs.progress, inputs.ints.max_denoising_steps
    num_masks = progress.length - inputs.ints.is_seeded
    quota = num_masks // max_steps + (progress.step < num_masks % max_steps)
    fill_all = progress.step + 1 >= max_steps
    return unmask_select(is_masked, confidence, floats.confidence_threshold, quota, fill_all)


def _block_outcome(
    state: BlockState, inputs: RoundInputs, canvas: Tensor, still_masked: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Which rows have no mask before a stop token, and which of those end their request: two `[R]` bool."""
    has_no_mask = ~still_masked.any(dim=1)
    if not inputs.layout.accepts_whole_blocks:
        # A stop token in a draft is no end: the verifier may want another.
        return has_no_mask, None
    progress, ints = inputs.progress, inputs.ints
    width = inputs.layout.max_width
    offsets = state.offsets[:width]
    # A seeded block's first token was emitted, and checked, before.
    is_new = (offsets < progress.length[:, None]) & (offsets >= ints.is_seeded[:, None])
    is_stop = _is_stop(state, inputs.slots, canvas) & is_new & ~still_masked
    first_stop = torch.where(is_stop, offsets, width).amin(dim=1)
    first_mask = torch.where(still_masked, offsets, width).amin(dim=1)
    is_filled = has_no_mask | (first_stop < first_mask)
    reaches_limit = progress.length - ints.is_seeded >= progress.remaining
    accepts_whole = ints.accepts_whole_block.bool()
    ends_request = is_filled & ((first_stop < width) | reaches_limit) & accepts_whole
    return torch.where(accepts_whole, is_filled, has_no_mask), ends_request


def _emission(
    state: BlockState,
    inputs: RoundInputs,
    canvas: Tensor,
    chosen: Tensor,
    is_denoise: Tensor,
    ends_request: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids `[R, L]`, how many of them count `[R]` (0 while a row denoises), and next seeds `[R]`."""
    length = inputs.progress.length
    num_correct_drafts, seed_ids = accept_prefix(canvas[:, 1:], chosen, length - 1)
    emitted, accept_lens = chosen, torch.where(is_denoise, 0, num_correct_drafts + 1)
    if ends_request is not None:
        accepts_whole, is_seeded = inputs.ints.accepts_whole_block.bool(), inputs.ints.is_seeded
        last = (length - 1).clamp(min=0)[:, None]
        next_seed = chosen.gather(1, last)
        # A whole seeded block emits what follows its (already emitted) seed, then the next seed.
        shifted = canvas.roll(-1, dims=1).scatter(1, last, next_seed)
        whole_ids = torch.where(is_seeded[:, None].bool(), shifted, canvas)
        emitted = torch.where(accepts_whole[:, None], whole_ids, chosen)
        seed_ids = torch.where(accepts_whole, next_seed[:, 0], seed_ids)
        # Without its commit a seeded block has no next seed to emit.
        uncommitted_lens = torch.where(ends_request, length - is_seeded, 0)
        whole_lens = torch.where(is_denoise, uncommitted_lens, length)
        accept_lens = torch.where(accepts_whole, whole_lens, accept_lens)
    if inputs.layout.has_stop_ids:
        width = inputs.layout.max_width
        is_stop = _is_stop(state, inputs.slots, emitted)
        first_stop = torch.where(is_stop, state.offsets[:width], width).amin(dim=1)
        accept_lens = torch.minimum(accept_lens, first_stop + 1)
    return emitted, torch.minimum(accept_lens, inputs.progress.remaining.clamp(min=0)), seed_ids


def _is_stop(state: BlockState, slots: Tensor, token_ids: Tensor) -> Tensor:
    """`[R, L]` bool: the token ends its row's request."""
    return (token_ids[:, :, None] == state.stop_ids[slots][:, None, :]).any(dim=2)
