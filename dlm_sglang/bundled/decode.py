"""The three modes over `Rows`: greedy, seeded blocks, spec §3.1 - §3.3."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_sglang.bundled.rows import RowResult, Rows


def autoregressive(rows: Rows) -> list[RowResult]:
    """One causal forward per token."""
    while len(rows.active):
        rows.open_block()
        rows.seeds = rows.pick(rows.commit(rows.seeds[:, None])[:, -1])
        rows.cached_lens = rows.cached_lens + 1
        rows.emit(rows.seeds[:, None].tolist())
        rows.close_block()
    return rows.results


def self_speculation(rows: Rows, block_length: int, use_lora: bool = True) -> list[RowResult]:
    """Draft a block in one denoise forward, verify it by the causal forward that also commits it."""
    while len(rows.active):
        rows.open_block()
        canvas = _new_canvas(rows, block_length)
        canvas[:, 1:] = rows.pick(rows.denoise(canvas, torch.arange(len(canvas)), use_lora))[:, 1:]
        verified = rows.pick(rows.commit(canvas))
        num_correct_drafts = (verified[:, :-1] == canvas[:, 1:]).long().cumprod(1).sum(1)
        rows.cached_lens = rows.cached_lens + num_correct_drafts + 1
        rows.seeds = verified.gather(1, num_correct_drafts[:, None])[:, 0]
        rows.emit([row[: n + 1] for row, n in zip(verified.tolist(), num_correct_drafts.tolist(), strict=True)])
        rows.close_block()
    return rows.results


def diffusion(
    rows: Rows, block_length: int, confidence_threshold: float | None = None, max_denoising_steps: int | None = None
) -> list[RowResult]:
    """Denoise a block, commit it, take the next seed from the commit's last row.

    Args:
        confidence_threshold: None spreads the masks evenly over the steps.
        max_denoising_steps: None is one step per mask; masks left at the last step are all filled.
    """
    num_steps = min(max_denoising_steps or block_length, block_length - 1)
    while len(rows.active):
        rows.open_block()
        canvas = _new_canvas(rows, block_length)
        for steps_left in range(num_steps, 0, -1):
            _denoise(rows, canvas, confidence_threshold, num_steps, steps_left)
        canvas = canvas[rows.emit(canvas[:, 1:].tolist())]
        if len(rows.active):
            rows.seeds = rows.pick(rows.commit(canvas)[:, -1])
            rows.cached_lens = rows.cached_lens + block_length
            rows.emit(rows.seeds[:, None].tolist())
        rows.close_block()
    return rows.results


def _new_canvas(rows: Rows, block_length: int) -> Tensor:
    """`[R, L]`: each row's seed, then masks."""
    canvas = torch.full((len(rows.active), block_length), rows.model.config.mask_token_id)
    canvas[:, 0] = rows.seeds
    return canvas


def _denoise(rows: Rows, canvas: Tensor, threshold: float | None, num_steps: int, steps_left: int) -> None:
    """One step, in place, of the rows that still have a mask before their first EOS."""
    config = rows.model.config
    is_masked = canvas == config.mask_token_id
    before_eos = (canvas == config.eos_token_id).long().cumsum(1) == 0
    which = (is_masked & before_eos).any(1).nonzero().squeeze(1)
    if len(which) == 0:
        return
    logits = rows.denoise(canvas[which], which)
    picks = rows.pick(logits)
    # In float64, as the oracle: a trained model is often surer than float32 can tell from 1.
    confidence = logits.double().softmax(-1).gather(2, picks[..., None])[..., 0].masked_fill(~is_masked[which], -1.0)
    if steps_left == 1:
        chosen = is_masked[which]
    elif threshold is None:
        num_masks, step = canvas.shape[1] - 1, num_steps - steps_left
        num_to_fill = num_masks // num_steps + (step < num_masks % num_steps)
        order = confidence.sort(dim=1, descending=True, stable=True).indices[:, :num_to_fill]
        chosen = torch.zeros_like(confidence, dtype=torch.bool).scatter(1, order, True) & is_masked[which]
    else:
        best = torch.nn.functional.one_hot(confidence.argmax(1), canvas.shape[1]).bool()
        chosen = ((confidence.float() >= threshold) | best) & is_masked[which]
    canvas[which] = torch.where(chosen, picks, canvas[which])
