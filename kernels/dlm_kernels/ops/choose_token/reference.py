"""Plain-torch choice of a token per logits row, with its confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_kernels.ops.sample_token.reference import greedy_token, sample_token
from dlm_kernels.ops.sample_token.rows import SamplingRows

# Rows to draw from are sorted in pieces of this many logits, which stay in a core's cache between the passes over them.
_LOGITS_PER_DRAW = 1 << 17
# Probabilities are made in pieces of this many logits: the buffer for them stays small, and the calls' own cost too.
LOGITS_PER_PIECE = 1 << 20


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
    token_ids = _greedy(logits, is_settled, excluded_token_id)
    if sampling is not None:
        draw(logits, sampling, is_settled, excluded_token_id, token_ids)
    wanted: bool | Tensor = needs_confidence
    if is_settled is not None and needs_confidence is not False:
        wanted = ~is_settled & needs_confidence
    confidence = _confidence(logits, token_ids, wanted, excluded_token_id, counts_excluded)
    return token_ids, confidence.to(confidence_dtype)


def _greedy(logits: Tensor, is_settled: Tensor | None, excluded_token_id: int) -> Tensor:
    """Argmax of the rows, 0 in settled ones: to leave those out would cost a copy of the others."""
    token_ids = greedy_token(logits, excluded_token_id)
    return token_ids if is_settled is None else token_ids.masked_fill_(is_settled, 0)


def draw(
    logits: Tensor, sampling: SamplingRows, is_settled: Tensor | None, excluded_token_id: int, token_ids: Tensor
) -> None:
    """Overwrite the ids of sampled rows that are not settled; a row in which no id is possible keeps its own."""
    is_sampled = sampling.temperature > 0
    if is_settled is not None:
        is_sampled = is_sampled & ~is_settled
    rows = is_sampled.nonzero().squeeze(1)
    rows_per_piece = max(1, _LOGITS_PER_DRAW // logits.shape[1])
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
    logits: Tensor, token_ids: Tensor, wanted: bool | Tensor, excluded_token_id: int, counts_excluded: bool
) -> Tensor:
    """`1 / (1 + odds of the others)` of the chosen tokens, 0 where it is not wanted; `[N]` float64."""
    num_rows, vocab_size = logits.shape
    # With one id there is nothing to choose once it is excluded.
    if wanted is False or (vocab_size == 1 and excluded_token_id == 0):
        return torch.zeros(num_rows, dtype=torch.float64, device=logits.device)
    left_out = -1 if counts_excluded else excluded_token_id
    if logits.numel() <= LOGITS_PER_PIECE:
        confidence = _probability(logits, token_ids, left_out)
        return confidence if wanted is True else confidence.masked_fill_(~wanted, 0.0)
    confidence = torch.zeros(num_rows, dtype=torch.float64, device=logits.device)
    rows = wanted.nonzero().squeeze(1) if isinstance(wanted, Tensor) else None
    num_wanted = num_rows if rows is None else rows.numel()
    rows_per_piece = max(1, LOGITS_PER_PIECE // vocab_size)
    # One buffer for all pieces: fresh memory of this size costs more than the arithmetic.
    buffer = torch.empty((rows_per_piece, vocab_size), dtype=torch.float32, device=logits.device)
    for begin in range(0, num_wanted, rows_per_piece):
        end = min(begin + rows_per_piece, num_wanted)
        piece = slice(begin, end) if rows is None else rows[begin:end]
        confidence[piece] = _probability(logits[piece], token_ids[piece], left_out, buffer[: end - begin])
    return confidence


def _probability(logits: Tensor, token_ids: Tensor, left_out: int, buffer: Tensor | None = None) -> Tensor:
    """Probability of a token per row, without the id `left_out` in the denominator; 0 where its logit is -inf."""
    index = token_ids[:, None]
    top = logits.gather(1, index).float()
    odds = torch.sub(logits, top, out=buffer).exp_().scatter_(1, index, 0.0)
    if left_out >= 0:
        odds[:, left_out] = 0.0
    probability = odds.sum(dim=-1, keepdim=True).double().add_(1.0).reciprocal_()
    return probability.masked_fill_(top.isneginf(), 0.0).squeeze(1)
