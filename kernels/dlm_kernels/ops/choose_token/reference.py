"""Plain-torch choice of a token per logits row, with its confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.ops.sample_token.reference import greedy_token, sample_token
from dlm_kernels.ops.sample_token.rows import SamplingRows

# Rows are worked on in pieces of this many logits, which stay in a core's cache between the passes over them.
_LOGITS_PER_PIECE = 1 << 17


def choose_token(
    logits: Tensor,
    *,
    excluded_token_id: int,
    sampling: SamplingRows | None = None,
    is_settled: Tensor | None = None,
    needs_confidence: bool | Tensor = True,
    counts_excluded: bool = True,
    confidence_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Pick a token per row of logits, and say how probable the raw logits make it.

    Args and results: see `dlm_kernels.ops.choose_token.op.choose_token`, which checks them.

    Returns:
        token_ids: `[N]` int64.
        confidence: `[N]` `confidence_dtype`.
    """
    rows = None if is_settled is None else (~is_settled).nonzero().squeeze(1)
    token_ids = _greedy(logits, rows, excluded_token_id)
    if sampling is not None:
        is_sampled = sampling.temperature > 0
        if is_settled is not None:
            is_sampled = is_sampled & ~is_settled
        _draw(logits, sampling, is_sampled.nonzero().squeeze(1), excluded_token_id, token_ids)

    if isinstance(needs_confidence, Tensor):
        asked = needs_confidence if is_settled is None else needs_confidence & ~is_settled
        rows = asked.nonzero().squeeze(1)
    confidence = torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)
    if isinstance(needs_confidence, Tensor) or needs_confidence:
        which = slice(None) if rows is None else rows
        confidence[which] = _confidence(logits, token_ids, rows, excluded_token_id, counts_excluded)
    return token_ids, confidence.to(confidence_dtype)


def _greedy(logits: Tensor, rows: Tensor | None, excluded_token_id: int) -> Tensor:
    """Argmax of the rows, 0 in rows that are not among them."""
    if rows is None:
        return greedy_token(logits, excluded_token_id)
    token_ids = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
    # A gather of rows costs about as much as the search through them.
    if 2 * rows.numel() > logits.shape[0]:
        token_ids[rows] = greedy_token(logits, excluded_token_id)[rows]
    elif rows.numel() > 0:
        token_ids[rows] = greedy_token(logits[rows], excluded_token_id)
    return token_ids


def _draw(logits: Tensor, sampling: SamplingRows, rows: Tensor, excluded_token_id: int, token_ids: Tensor) -> None:
    """Overwrite `token_ids[rows]` with samples; a row in which no id is possible keeps its own."""
    rows_per_piece = max(1, _LOGITS_PER_PIECE // logits.shape[1])
    for piece in rows.split(rows_per_piece) if rows.numel() > 0 else ():
        chosen = sampling.select(piece)
        drawn = sample_token(
            logits[piece],
            chosen.uniform,
            chosen.temperature,
            chosen.top_k,
            chosen.top_p,
            chosen.min_p,
            excluded_token_id,
        )
        # Their most likely logit is -inf: the softmax is empty.
        is_empty = logits[piece, token_ids[piece]] == float("-inf")
        token_ids[piece] = torch.where(is_empty, token_ids[piece], drawn)


def _confidence(
    logits: Tensor, token_ids: Tensor, rows: Tensor | None, excluded_token_id: int, counts_excluded: bool
) -> Tensor:
    """`1 / (1 + odds of the others)` of the chosen tokens of `rows` (all where None), float64."""
    num_rows = logits.shape[0] if rows is None else rows.numel()
    rows_per_piece = max(1, _LOGITS_PER_PIECE // logits.shape[1])
    confidence = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    for begin in range(0, num_rows, rows_per_piece):
        piece = slice(begin, min(begin + rows_per_piece, num_rows))
        which = piece if rows is None else rows[piece]
        raw = logits[which]
        index = token_ids[which][:, None]
        top = raw.gather(1, index).float()
        odds = torch.sub(raw, top).exp_()  # [piece, V] float32
        odds.scatter_(1, index, 0.0)
        if not counts_excluded and excluded_token_id >= 0:
            odds[:, excluded_token_id] = 0.0
        probability = 1.0 / (1.0 + odds.sum(dim=-1).double())
        is_empty = (top[:, 0] == float("-inf")) | (index[:, 0] == excluded_token_id)
        confidence[piece] = probability.masked_fill(is_empty, 0.0)
    return confidence
