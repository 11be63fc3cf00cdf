"""Which masks of a block a denoise step fills (spec §3.2): by confidence threshold or by an even schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dlm_sglang.reference.sequence import Canvas


def confidence(logits: Tensor, token_id: int) -> float:
    """How sure the model is of `token_id`: its softmax probability under the raw logits, in float64.

    A trained model is often surer than float32 can tell from 1, and then the order of filling would follow
    the rounding of a sum.

    Args:
        logits: `[V]` as the model gave them: no temperature, no filter, the mask id included.
    """
    return float(torch.softmax(logits.double(), dim=-1)[token_id])


def spread_evenly(num_masks: int, num_steps: int) -> list[int]:
    """How many masks each step fills without a threshold: equal shares, the remainder to the first steps."""
    share, remainder = divmod(num_masks, num_steps)
    return [share + 1 if step < remainder else share for step in range(num_steps)]


def most_confident_first(confidences: Mapping[int, float]) -> list[int]:
    """The positions by falling confidence; among equals the lowest position first."""
    return sorted(confidences, key=lambda i: (-confidences[i], i))


def confident_or_best(confidences: Mapping[int, float], threshold: float) -> list[int]:
    """The positions whose confidence reaches the threshold; where none does, the most confident one.

    Both sides are compared as float32 numbers, as an engine's tensors are.
    """
    float32_threshold = _float32(threshold)
    reached = [i for i, value in confidences.items() if _float32(value) >= float32_threshold]
    return reached or most_confident_first(confidences)[:1]


def ends_at_eos(canvas: Canvas, eos_ids: Collection[int]) -> bool:
    """Whether an EOS stands in the block with no mask before it, so that nothing else of it matters."""
    for token_id in canvas:
        if token_id is None:
            return False
        if token_id in eos_ids:
            return True
    return False


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
