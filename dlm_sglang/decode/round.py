"""One scheduler iteration: what the mixed forward reads, and what its logits do to every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dlm_kernels.ops.accept_prefix import accept_prefix
from dlm_kernels.ops.sample_token import confidence_of
from dlm_kernels.ops.unmask_select import unmask_select
from torch import Tensor

from dlm_sglang.decode.choose import choose_tokens
from dlm_sglang.decode.policy import DecodePolicy
from dlm_sglang.decode.state import COMMIT, DENOISE, BlockState


@dataclass(frozen=True)
class RoundTraits:
    """What the host knows of a round's rows without reading the device.

    Attributes:
        all_greedy: no row samples.
        all_autoregressive: every row's policy decodes one token at a time.
        may_draft: some row's policy uses the drafter adapter.
    """

    all_greedy: bool
    all_autoregressive: bool
    may_draft: bool

    @classmethod
    def of(cls, policies: Sequence[DecodePolicy]) -> RoundTraits:
        return cls(
            all_greedy=not any(policy.temperature for policy in policies),
            all_autoregressive=max(policy.block_length for policy in policies) == 1,
            may_draft=any(policy.uses_drafter for policy in policies),
        )


@dataclass(frozen=True)
class RoundInputs:
    """One mixed forward over R rows with T query tokens, rows one after another.

    Attributes:
        slots: `[R]` int64, request slots.
        seq_lens: `[R]` int64, committed tokens before the block.
        row_lens: R query lengths (host).
        row_lens_device: `[R]` int64.
        token_index: `[R, L]` int64, flat index of each block position; past a row's end it repeats the last.
        input_ids, positions: `[T]` int64.
        kv_limit: `[T]` int64, keys at positions below it are visible.
        draft_rows: `[T]` float32, 1 where the drafter adapter applies, or None where no row can be a draft.
        traits: what the host knows of the rows.
    """

    slots: Tensor
    seq_lens: Tensor
    row_lens: list[int]
    row_lens_device: Tensor
    token_index: Tensor
    input_ids: Tensor
    positions: Tensor
    kv_limit: Tensor
    draft_rows: Tensor | None
    traits: RoundTraits


@dataclass(frozen=True)
class RoundOutputs:
    """What a round emitted.

    Attributes:
        token_ids: `[R, L]` int64, the first `accept_lens` of each row count.
        accept_lens: `[R]` int64, new tokens per row, 0 for a row that still denoises.
        new_seq_lens: `[R]` int64, tokens before the next block.
        is_denoise: `[R]` bool, the round was a denoise forward for the row. A denoise row that emits ends its
            request, and the KV of what it emitted is scratch: it must not reach the prefix cache.
    """

    token_ids: Tensor
    accept_lens: Tensor
    new_seq_lens: Tensor
    is_denoise: Tensor


def plan_round(
    state: BlockState, slots: Tensor, seq_lens: Tensor, row_lens: list[int], traits: RoundTraits
) -> RoundInputs:
    """Gather what the mixed forward reads.

    Args:
        state: block state.
        slots, seq_lens: `[R]` int64.
        row_lens: R block lengths, host-known: `min(block_length, context_length - seq_len)`.
        traits: what the host knows of the rows.

    Source: one-block-two-forwards scheme, spec sections 2.1 to 2.3.
    """
    device = slots.device
    lens = torch.tensor(row_lens, dtype=torch.int64).to(device, non_blocking=True)
    length = max(row_lens)
    if length == 1:
        token_index = torch.arange(len(row_lens), device=device)[:, None]
        return RoundInputs(
            slots=slots,
            seq_lens=seq_lens,
            row_lens=row_lens,
            row_lens_device=lens,
            token_index=token_index,
            input_ids=state.canvas[slots, 0],
            positions=seq_lens,
            kv_limit=seq_lens + 1,
            draft_rows=_draft_rows(state, slots) if traits.may_draft else None,
            traits=traits,
        )
    starts = lens.cumsum(0) - lens
    offsets = torch.arange(length, device=device)
    token_index = starts[:, None] + torch.minimum(offsets, lens[:, None] - 1)
    row_of_token = torch.repeat_interleave(torch.arange(len(row_lens), device=device), lens, output_size=sum(row_lens))
    offset_of_token = torch.arange(sum(row_lens), device=device) - starts[row_of_token]
    slot_of_token = slots[row_of_token]
    positions = seq_lens[row_of_token] + offset_of_token
    block_end = (seq_lens + lens)[row_of_token]
    is_denoise = state.phase[slot_of_token] == DENOISE
    return RoundInputs(
        slots=slots,
        seq_lens=seq_lens,
        row_lens=row_lens,
        row_lens_device=lens,
        token_index=token_index,
        input_ids=state.canvas[slot_of_token, offset_of_token],
        positions=positions,
        kv_limit=torch.where(is_denoise, block_end, positions + 1),
        draft_rows=_draft_rows(state, slot_of_token) if traits.may_draft else None,
        traits=traits,
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
    if inputs.traits.all_autoregressive:
        return _advance_autoregressive(state, inputs, logits)
    slots, lens = inputs.slots, inputs.row_lens_device
    length = inputs.token_index.shape[1]
    in_row = torch.arange(length, device=slots.device) < lens[:, None]  # [R, L]
    is_denoise = state.phase[slots] == DENOISE
    token_ids = choose_tokens(state, inputs, logits)
    chosen = token_ids[inputs.token_index]
    confidence = confidence_of(logits.float(), token_ids)[inputs.token_index]

    is_masked = state.is_masked[slots, :length] & in_row & is_denoise[:, None]
    filled = _filled_positions(state, inputs, is_masked, confidence)
    canvas = torch.where(filled, chosen, state.canvas[slots, :length])
    still_masked = is_masked & ~filled
    is_filled, ends_request = _block_outcome(state, inputs, canvas, still_masked, in_row)

    emitted, accept_lens, seed_ids = _emission(state, inputs, canvas, chosen, is_denoise, ends_request)
    state.canvas[slots, :length] = canvas
    state.is_masked[slots, :length] = still_masked
    state.phase[slots] = torch.where(is_denoise & ~is_filled, DENOISE, COMMIT)
    state.step[slots] += is_denoise.long()
    state.remaining[slots] -= accept_lens
    new_seq_lens = inputs.seq_lens + accept_lens
    state.begin_blocks(slots, seed_ids, new_seq_lens, keep=is_denoise)
    return RoundOutputs(emitted, accept_lens, new_seq_lens, is_denoise)


def _advance_autoregressive(state: BlockState, inputs: RoundInputs, logits: Tensor) -> RoundOutputs:
    """The round when every row is autoregressive: one token each, no block to lay out."""
    slots = inputs.slots
    token_ids = choose_tokens(state, inputs, logits)
    accept_lens = state.remaining[slots].clamp(0, 1)
    state.canvas[slots, 0] = token_ids
    state.remaining[slots] -= accept_lens
    is_denoise = torch.zeros_like(accept_lens, dtype=torch.bool)
    return RoundOutputs(token_ids[:, None], accept_lens, inputs.seq_lens + accept_lens, is_denoise)


def _draft_rows(state: BlockState, slot_of_token: Tensor) -> Tensor:
    is_draft = (state.phase[slot_of_token] == DENOISE) & state.uses_drafter[slot_of_token].bool()
    return is_draft.float()


def _filled_positions(state: BlockState, inputs: RoundInputs, is_masked: Tensor, confidence: Tensor) -> Tensor:
    slots = inputs.slots
    step, max_steps = state.step[slots], state.max_denoising_steps[slots]
    num_masks = inputs.row_lens_device - state.is_seeded[slots]
    quota = num_masks // max_steps + (step < num_masks % max_steps)
    fill_all = step + 1 >= max_steps
    return unmask_select(is_masked, confidence, state.confidence_threshold[slots], quota, fill_all)


def _block_outcome(
    state: BlockState, inputs: RoundInputs, canvas: Tensor, still_masked: Tensor, in_row: Tensor
) -> tuple[Tensor, Tensor]:
    """Which rows have no mask before a stop token, and which of those end their request: two `[R]` bool."""
    slots = inputs.slots
    length = canvas.shape[1]
    offsets = torch.arange(length, device=slots.device)
    is_seeded = state.is_seeded[slots]
    # A seeded block's first token was emitted, and checked, before.
    is_new = in_row & (offsets >= is_seeded[:, None])
    is_stop = _is_stop(state, slots, canvas) & is_new & ~still_masked
    first_stop = torch.where(is_stop, offsets, length).amin(dim=1)
    first_mask = torch.where(still_masked, offsets, length).amin(dim=1)
    is_filled = (first_mask == length) | (first_stop < first_mask)
    reaches_limit = inputs.row_lens_device - is_seeded >= state.remaining[slots]
    ends_request = is_filled & ((first_stop < length) | reaches_limit)
    # A stop token in a draft is no end: the verifier may want another.
    is_filled = torch.where(state.accepts_whole_block[slots].bool(), is_filled, first_mask == length)
    return is_filled, ends_request


def _emission(
    state: BlockState,
    inputs: RoundInputs,
    canvas: Tensor,
    chosen: Tensor,
    is_denoise: Tensor,
    ends_request: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids `[R, L]`, how many of them count `[R]` (0 while a row denoises), and next seeds `[R]`."""
    slots, lens = inputs.slots, inputs.row_lens_device
    last = (lens - 1)[:, None]
    num_correct_drafts, bonus_ids = accept_prefix(canvas[:, 1:], chosen, lens - 1)
    accepts_whole = state.accepts_whole_block[slots].bool()
    is_seeded = state.is_seeded[slots].bool()
    next_seed = chosen.gather(1, last)
    # A whole seeded block emits what follows its (already emitted) seed, then the next seed.
    whole_ids = torch.where(is_seeded[:, None], canvas.roll(-1, dims=1).scatter(1, last, next_seed), canvas)
    emitted = torch.where(accepts_whole[:, None], whole_ids, chosen)
    seed_ids = torch.where(accepts_whole, next_seed[:, 0], bonus_ids)

    accept_lens = torch.where(accepts_whole, lens, num_correct_drafts + 1)
    # Without its commit a seeded block has no next seed to emit.
    uncommitted_lens = torch.where(ends_request & accepts_whole, lens - state.is_seeded[slots], 0)
    accept_lens = torch.where(is_denoise, uncommitted_lens, accept_lens)
    offsets = torch.arange(emitted.shape[1], device=slots.device)
    is_stop = _is_stop(state, slots, emitted)
    first_stop = torch.where(is_stop, offsets, emitted.shape[1]).amin(dim=1)
    accept_lens = torch.minimum(accept_lens, first_stop + 1)
    return emitted, torch.minimum(accept_lens, state.remaining[slots].clamp(min=0)), seed_ids


def _is_stop(state: BlockState, slots: Tensor, token_ids: Tensor) -> Tensor:
    return (token_ids[:, :, None] == state.stop_ids[slots][:, None, :]).any(dim=2)
