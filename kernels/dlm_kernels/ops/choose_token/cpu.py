"""The choice of tokens in numpy, for float32 logits on a CPU.

numpy's argmax compares many values per instruction where torch's compares one, and its small operations cost less to
call. The arithmetic is the reference's; other dtypes, and rows that are drawn, are left to it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlm_kernels.ops.choose_token import reference
from dlm_kernels.ops.sample_token.rows import SamplingRows

Logits: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]


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
    """
    if logits.dtype is not torch.float32:
        return reference.choose_token(
            logits,
            excluded_token_id=excluded_token_id,
            sampling=sampling,
            is_settled=is_settled,
            needs_confidence=needs_confidence,
            counts_excluded=counts_excluded,
            confidence_dtype=confidence_dtype,
        )
    values = (logits.detach() if logits.requires_grad else logits).numpy()
    ids = _greedy(values, excluded_token_id)
    settled = None if is_settled is None else is_settled.numpy()
    if settled is not None:
        ids[settled] = 0
    token_ids = torch.from_numpy(ids)
    if sampling is not None:
        reference.draw(logits, sampling, is_settled, excluded_token_id, token_ids)
    confidence = np.zeros(len(values))
    # With one id there is nothing to choose once it is excluded.
    if needs_confidence is not False and (values.shape[1] > 1 or excluded_token_id != 0):
        rows = _wanted_rows(len(values), needs_confidence, settled)
        rows_per_piece = max(1, reference.LOGITS_PER_PIECE // values.shape[1])
        for begin in range(0, len(rows), rows_per_piece):
            piece = rows[begin : begin + rows_per_piece]
            confidence[piece] = _probability(values[piece], ids[piece], -1 if counts_excluded else excluded_token_id)
    return token_ids, torch.from_numpy(confidence).to(confidence_dtype)


def _greedy(values: Logits, excluded_token_id: int) -> Ints:
    """The first index of each row's largest value, NaN above all, with the excluded column at -inf meanwhile."""
    column = values[:, max(excluded_token_id, 0)]
    excluded = column.copy()
    if excluded_token_id >= 0:
        column[:] = -np.inf
    ids: Ints = values.argmax(axis=1)
    column[:] = excluded
    if excluded_token_id == 0 and values.shape[1] > 1:
        # Only among nothing but -inf is the excluded id the lowest of the largest.
        np.maximum(ids, 1, out=ids)
    return ids


def _wanted_rows(num_rows: int, wanted: bool | Tensor, settled: Flags | None) -> Ints:
    """Indices of the rows whose confidence somebody asks for."""
    flags: Flags = wanted.numpy() if isinstance(wanted, Tensor) else np.ones(num_rows, dtype=np.bool_)
    return (flags if settled is None else flags & ~settled).nonzero()[0]


def _probability(rows: Logits, ids: Ints, left_out: int) -> npt.NDArray[np.float64]:
    """`1 / (1 + odds of the others)` of an id per row, 0 where its logit is -inf; `rows` is overwritten.

    The id `left_out` does not count among the others.
    """
    each = np.arange(len(rows))
    top = rows[each, ids]
    with np.errstate(over="ignore", invalid="ignore"):
        rows -= top[:, None]
        np.exp(rows, out=rows)
    rows[each, ids] = 0.0
    if left_out >= 0:
        rows[:, left_out] = 0.0
    probability: npt.NDArray[np.float64] = 1.0 / (1.0 + rows.sum(axis=1).astype(np.float64))
    probability[np.isneginf(top)] = 0.0
    return probability
