"""The token that each logits row of a round proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from dlm_kernels.ops.choose_token import choose_token
from dlm_kernels.ops.sample_token import SamplingRows, uniform_from_seed
from torch import Tensor

from dlm_sglang.decode.state import DENOISE, BlockState

if TYPE_CHECKING:
    from dlm_sglang.decode.policy import DecodePolicy
    from dlm_sglang.decode.round import RoundInputs

# Below this many logits it costs more to tell which of them matter than to look at all.
MIN_LOGITS_TO_SKIP = 1 << 22


def choose_tokens(state: BlockState, inputs: RoundInputs, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Pick a token for every query token of the round.

    Args:
        state: block state.
        inputs: what the forward read.
        logits: `[T, V]` float.

    Returns:
        token_ids: `[T]` int64, never the mask id.
        confidence: `[T]` float64, the tokens' probabilities under the raw logits; 0 where no row compares them.

    Source: spec sections 3.1 to 3.3; drafts that a verifier checks are greedy.
    """
    layout = inputs.layout
    return choose_token(
        logits,
        excluded_token_id=state.mask_token_id,
        sampling=sampling_rows(state, inputs) if layout.may_sample else None,
        is_settled=_settled_tokens(state, inputs) if logits.numel() >= MIN_LOGITS_TO_SKIP else None,
        needs_confidence=layout.ranks_masks if inputs.is_masked is None else inputs.is_masked,
    )


def _settled_tokens(state: BlockState, inputs: RoundInputs) -> Tensor | None:
    """`[T]` bool, tokens whose logits nobody needs: filled positions, all but the last of an unverified commit."""
    layout = inputs.layout
    if layout.is_autoregressive or inputs.progress is None or inputs.ints is None:
        return None
    offsets = state.offsets[: layout.max_width]
    is_denoise = (inputs.progress.phase == DENOISE)[:, None]
    is_last = offsets == (inputs.progress.length - 1)[:, None]
    is_wanted_by_commit = is_last | (inputs.ints.accepts_whole_block == 0)[:, None]
    is_wanted = torch.where(is_denoise, state.is_masked[inputs.slots, : layout.max_width], is_wanted_by_commit)
    is_settled = ~layout.per_block(is_wanted)
    return is_settled if inputs.is_padding is None else is_settled | inputs.is_padding


def sampling_rows(state: BlockState, inputs: RoundInputs) -> SamplingRows:
    """How each query token of a round is sampled, T rows."""
    layout, ints, progress = inputs.layout, inputs.ints, inputs.progress
    assert ints is not None and progress is not None, "gathered where a row samples"
    floats = state.floats_of(inputs.slots)
    is_denoise = progress.phase == DENOISE
    temperature = torch.where(is_denoise, floats.denoise_temperature, floats.temperature)
    # A causal row chooses the token one past its own position, in step 0 of that position.
    position = inputs.positions + layout.per_token(torch.where(is_denoise, 0, 1))
    step = layout.per_token(torch.where(is_denoise, progress.step + 1, 0))
    return SamplingRows(
        temperature=layout.per_token(temperature),
        top_k=layout.per_token(ints.top_k),
        top_p=layout.per_token(floats.top_p),
        min_p=layout.per_token(floats.min_p),
        uniform=uniform_from_seed(layout.per_token(ints.seed), position, step),
    )


def choose_seeds(logits: Tensor, policies: Sequence[DecodePolicy], positions: Tensor, mask_token_id: int) -> Tensor:
    """Pick the token after each prompt from its last causal row.

    Args:
        logits: `[R, V]` float.
        policies: R policies.
        positions: `[R]` int64, absolute position of the token to choose.
        mask_token_id: never chosen.

    Returns:
        `[R]` int64.
    """
    sampling = None
    if any(policy.temperature > 0 for policy in policies):

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(logits.device, non_blocking=True)

        seeds = column([policy.seed for policy in policies], torch.int64)
        sampling = SamplingRows(
            temperature=column([policy.temperature for policy in policies], torch.float32),
            top_k=column([policy.top_k for policy in policies], torch.int64),
            top_p=column([policy.top_p for policy in policies], torch.float32),
            min_p=column([policy.min_p for policy in policies], torch.float32),
            uniform=uniform_from_seed(seeds, positions, torch.zeros_like(seeds)),
        )
    token_ids, _ = choose_token(logits, excluded_token_id=mask_token_id, sampling=sampling, needs_confidence=False)
    return token_ids
