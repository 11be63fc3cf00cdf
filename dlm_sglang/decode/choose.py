"""The token that each logits row of a round proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from dlm_kernels.ops.sample_token import greedy_token, sample_token, uniform_from_seed
from torch import Tensor

from dlm_sglang.decode.state import DENOISE, BlockState, PolicyFloats

if TYPE_CHECKING:
    from dlm_sglang.decode.policy import DecodePolicy
    from dlm_sglang.decode.round import RoundInputs


def choose_tokens(state: BlockState, inputs: RoundInputs, floats: PolicyFloats | None, logits: Tensor) -> Tensor:
    """Pick a token for every query token of the round.

    Args:
        state: block state.
        inputs: what the forward read.
        floats: policies of the rows; needed where a row samples.
        logits: `[T, V]` float.

    Returns:
        `[T]` int64, never the mask id.

    Source: spec sections 3.1 to 3.3; drafts that a verifier checks are greedy.
    """
    token_ids = greedy_token(logits, state.mask_token_id)
    tokens = inputs.layout.sampled_tokens
    if tokens is None or floats is None:
        return token_ids
    rows = inputs.layout.row_of_token[tokens]
    is_denoise = inputs.progress.phase[rows] == DENOISE
    temperature = torch.where(is_denoise, floats.denoise_temperature[rows], floats.temperature[rows])
    positions = inputs.positions[tokens]
    # A causal row chooses the token one past its own position, in step 0 of that position.
    chosen_position = torch.where(is_denoise, positions, positions + 1)
    step = torch.where(is_denoise, inputs.progress.step[rows] + 1, 0)
    sampled = sample_token(
        logits[tokens],
        uniform_from_seed(inputs.ints.seed[rows], chosen_position, step),
        torch.where(temperature > 0, temperature, 1.0),
        inputs.ints.top_k[rows],
        floats.top_p[rows],
        floats.min_p[rows],
        state.mask_token_id,
    )
    token_ids[tokens] = torch.where(temperature > 0, sampled, token_ids[tokens])
    return token_ids


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
    token_ids = greedy_token(logits, mask_token_id)
    sampled = [row for row, policy in enumerate(policies) if policy.temperature > 0]
    if not sampled:
        return token_ids
    rows = torch.tensor(sampled, device=logits.device)
    chosen = [policies[row] for row in sampled]

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    seeds = column([policy.seed for policy in chosen], torch.int64)
    token_ids[rows] = sample_token(
        logits[rows],
        uniform_from_seed(seeds, positions[rows], torch.zeros_like(seeds)),
        column([policy.temperature for policy in chosen], torch.float32),
        column([policy.top_k for policy in chosen], torch.int64),
        column([policy.top_p for policy in chosen], torch.float32),
        column([policy.min_p for policy in chosen], torch.float32),
        mask_token_id,
    )
    return token_ids
