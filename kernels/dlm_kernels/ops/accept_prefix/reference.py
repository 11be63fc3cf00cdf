"""Plain-torch acceptance of a drafted block."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.ops.sample_token.reference import draw_from, filtered_probs, greedy_token
from dlm_kernels.ops.sample_token.rows import SamplingRows


def accept_prefix(draft_ids: Tensor, target_ids: Tensor, num_drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Count the leading draft tokens that the verifier agrees with, and pick the bonus token.

    Args and result: see `dlm_kernels.ops.accept_prefix.op.accept_prefix`.
    """
    offsets = torch.arange(draft_ids.shape[1], device=draft_ids.device)
    agrees = (draft_ids == target_ids[:, :-1]) & (offsets < num_drafts[:, None])
    num_correct_drafts = agrees.long().cumprod(dim=1).sum(dim=1)
    return num_correct_drafts, target_ids.gather(1, num_correct_drafts[:, None]).squeeze(1)


def accept_rejection(
    draft_ids: Tensor,
    draft_probs: Tensor | None,
    logits: Tensor,
    first_row: Tensor,
    num_drafts: Tensor,
    *,
    sampling: SamplingRows,
    accept_uniform: Tensor,
    excluded_token_id: int,
) -> tuple[Tensor, Tensor]:
    """Accept drafts by rejection sampling, and draw the bonus token from what is left.

    Args and result: see `dlm_kernels.ops.accept_prefix.op.accept_rejection`.
    """
    num_rows, length = draft_ids.shape
    num_correct_drafts = torch.zeros(num_rows, dtype=torch.int64, device=draft_ids.device)
    bonus_ids = torch.zeros_like(num_correct_drafts)
    rows = torch.arange(num_rows, device=draft_ids.device)  # the requests whose drafts were all accepted so far
    for index in range(length + 1):
        chosen = sampling.select(rows)
        target = target_probs(logits[first_row[rows] + index], chosen, excluded_token_id)  # [M, V]
        is_drafted = index < num_drafts[rows]
        draft = draft_ids[rows, min(index, length - 1)][:, None] if length > 0 else rows[:, None] * 0
        if draft_probs is None or length == 0:
            drafter = torch.zeros_like(target).scatter_(1, draft, 1.0)
        else:
            drafter = draft_probs[rows, min(index, length - 1)].double()
        price = accept_uniform[rows, min(index, length - 1)].double() if length > 0 else torch.zeros(len(rows))
        is_accepted = is_drafted & (price * drafter.gather(1, draft)[:, 0] < target.gather(1, draft)[:, 0])
        left = torch.where(is_drafted[:, None], (target - drafter).clamp(min=0.0), target)
        # Rounding may reject where nothing is left: target and drafter are then the same.
        left = torch.where(left.sum(dim=1, keepdim=True) > 0, left, target)
        bonus_ids[rows] = draw_from(left, chosen.uniform)
        num_correct_drafts[rows] += is_accepted.long()
        rows = rows[is_accepted]
        if rows.numel() == 0:
            break
    return num_correct_drafts, bonus_ids


def target_probs(logits: Tensor, sampling: SamplingRows, excluded_token_id: int) -> Tensor:
    """The verifier's distribution `[M, V]` float64; all on the most likely token at temperature 0."""
    is_greedy = sampling.temperature <= 0
    temperature = torch.where(is_greedy, 1.0, sampling.temperature)
    probs = filtered_probs(logits, temperature, sampling.top_k, sampling.top_p, sampling.min_p, excluded_token_id)
    greedy = torch.zeros_like(probs).scatter_(1, greedy_token(logits, excluded_token_id)[:, None], 1.0)
    return torch.where(is_greedy[:, None], greedy, probs)
