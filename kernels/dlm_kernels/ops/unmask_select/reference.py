"""Plain-torch selection of the positions that one denoising step fills, and what that does to each block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A NaN confidence ranks below every probability, and above what is not masked.
LEAST_SURE = -1.0


class UnmaskedBlock(NamedTuple):
    """The blocks after a denoising step.

    Attributes:
        canvas: `[R, L]` int64, token ids with the filled positions replaced.
        still_masked: `[R, L]` bool, masks left; False past a row's end and in rows that do not denoise.
        is_filled: `[R]` bool, the block needs no further denoising.
        ends_request: `[R]` bool, the block as it stands is the last of its request; never where it is verified.
    """

    canvas: Tensor
    still_masked: Tensor
    is_filled: Tensor
    ends_request: Tensor


def unmask_select(
    is_masked: Tensor,
    confidence: Tensor,
    confidence_threshold: Tensor,
    quota: Tensor,
    fill_all: Tensor,
    *,
    is_strict: bool = False,
) -> Tensor:
    """Choose the masked positions of each block that this step fills.

    Args and result: see `dlm_kernels.ops.unmask_select.op.unmask_select`.
    """
    ranked = confidence.nan_to_num(nan=LEAST_SURE).masked_fill(~is_masked, float("-inf"))
    order = torch.argsort(ranked, dim=1, descending=True, stable=True)
    offsets = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, offsets)
    by_schedule = torch.isnan(confidence_threshold)[:, None]
    precision = confidence.dtype if confidence.dtype.itemsize < 4 else torch.float32
    sure, threshold = confidence.to(precision), confidence_threshold.to(precision)[:, None]
    passes = sure > threshold if is_strict else sure >= threshold
    chosen = torch.where(by_schedule, rank < quota[:, None], passes | (rank == 0))
    return is_masked & (chosen | fill_all[:, None])


def unmask_block(
    canvas: Tensor,
    is_masked: Tensor,
    chosen: Tensor,
    confidence: Tensor,
    *,
    row_lens: Tensor,
    step: Tensor,
    max_denoising_steps: Tensor,
    confidence_threshold: Tensor,
    is_seeded: Tensor,
    accepts_whole_block: Tensor,
    stop_ids: Tensor,
    remaining: Tensor,
    is_denoise: Tensor,
    is_strict: bool = False,
) -> UnmaskedBlock:
    """Fill what one denoising step is sure of, and say whether the block and the request are done.

    Args and result: see `dlm_kernels.ops.unmask_select.op.unmask_block`.
    """
    length = canvas.shape[1]
    offsets = torch.arange(length, device=canvas.device)
    in_row = offsets < row_lens[:, None]
    seeded = is_seeded.long()
    is_masked = is_masked & in_row & is_denoise[:, None]
    num_masks = row_lens - seeded
    quota = num_masks // max_denoising_steps + (step < num_masks % max_denoising_steps)
    fill_all = step + 1 >= max_denoising_steps
    filled = unmask_select(is_masked, confidence, confidence_threshold, quota, fill_all, is_strict=is_strict)
    canvas = torch.where(filled, chosen, canvas)
    still_masked = is_masked & ~filled

    # A seeded block's first token was emitted, and checked, before.
    is_new = in_row & (offsets >= seeded[:, None])
    is_stop = (canvas[:, :, None] == stop_ids[:, None, :]).any(dim=2) & is_new & ~still_masked
    first_stop = torch.where(is_stop, offsets, length).amin(dim=1)
    first_mask = torch.where(still_masked, offsets, length).amin(dim=1)
    has_no_mask = first_mask == length
    is_frozen = has_no_mask | (first_stop < first_mask)
    # A stop token in a draft is no end: the verifier may want another.
    accepts_whole = accepts_whole_block.bool()
    ends_request = is_frozen & ((first_stop < length) | (num_masks >= remaining)) & accepts_whole
    is_filled = torch.where(accepts_whole, is_frozen, has_no_mask)
    return UnmaskedBlock(canvas, still_masked, is_filled, ends_request)
