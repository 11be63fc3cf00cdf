"""Plain-torch acceptance of a drafted block."""

from __future__ import annotations

import torch
from torch import Tensor


def accept_prefix(draft_ids: Tensor, target_ids: Tensor, num_drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Count the leading draft tokens that the verifier agrees with, and pick the bonus token.

    With targets sampled from the verifier's rows this is exact at any temperature: target 0 is a fresh sample
    and is emitted whatever the draft was; target i is used only when draft i - 1 equalled target i - 1.

    Args:
        draft_ids: `[R, L]` int64, drafted tokens of each row.
        target_ids: `[R, L + 1]` int64, the verifier's choice at every drafted position and one past it.
        num_drafts: `[R]` int64 in 0..L, how many of the drafts count (ragged rows).

    Returns:
        num_correct_drafts: `[R]` int64 in 0..num_drafts, bonus excluded.
        bonus_ids: `[R]` int64, the verifier's own token after the accepted prefix.

    Source: NLD spec section 3.3, linear self-speculation.
    """
    offsets = torch.arange(draft_ids.shape[1], device=draft_ids.device)
    agrees = (draft_ids == target_ids[:, :-1]) & (offsets < num_drafts[:, None])
    num_correct_drafts = agrees.long().cumprod(dim=1).sum(dim=1)
    return num_correct_drafts, target_ids.gather(1, num_correct_drafts[:, None]).squeeze(1)
