"""Plain-torch selection of the positions that one denoising step fills."""

from __future__ import annotations

import torch
from torch import Tensor


def unmask_select(
    is_masked: Tensor,
    confidence: Tensor,
    confidence_threshold: Tensor,
    quota: Tensor,
    fill_all: Tensor,
) -> Tensor:
    """Choose the masked positions of each block that this step fills.

    A row with a threshold fills every masked position whose confidence reaches it, and always the best one.
    A row without (NaN) fills its `quota` most confident positions. Ties go to the lowest position.

    Args:
        is_masked: `[R, L]` bool.
        confidence: `[R, L]` float64; values at unmasked positions are ignored. Ranks use all of it, the threshold
            is compared in float32, its own precision.
        confidence_threshold: `[R]` float32, NaN where the even schedule rules.
        quota: `[R]` int64, positions to fill under the even schedule, >= 0.
        fill_all: `[R]` bool, last allowed step: everything left is filled.

    Returns:
        `[R, L]` bool, a subset of `is_masked`.

    Source: NLD spec section 3.2, `generate`.
    """
    ranked = confidence.masked_fill(~is_masked, float("-inf"))
    order = torch.argsort(ranked, dim=1, descending=True, stable=True)
    offsets = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, offsets)
    by_schedule = torch.isnan(confidence_threshold)[:, None]
    passes = confidence.float() >= confidence_threshold[:, None]
    chosen = torch.where(by_schedule, rank < quota[:, None], passes | (rank == 0))
    return is_masked & (chosen | fill_all[:, None])
