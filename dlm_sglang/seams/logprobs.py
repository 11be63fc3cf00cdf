"""Log-probabilities of our rounds in the form that SGLang's result processing reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm_sglang.decode.logprobs import RoundLogprobs


def give_seed_logprobs(output: Any, logprobs: RoundLogprobs, num_rows: int) -> None:
    """Write those of a prefill: one per request, and lists of alternatives."""
    output.next_token_logprobs = per_row(logprobs, num_rows)[:, 0]
    tops = per_position(logprobs, num_rows, 1)
    if tops is not None:
        output.next_token_top_logprobs_val, output.next_token_top_logprobs_idx = tops


def give_round_logprobs(output: Any, logprobs: RoundLogprobs, num_rows: int, width: int) -> None:
    """Write those of a decode round that reached the host: `[R, L]`, and a list of alternatives for each position."""
    output.next_token_logprobs = per_row(logprobs, num_rows)
    tops = per_position(logprobs, num_rows, width)
    if tops is not None:
        output.next_token_top_logprobs_val, output.next_token_top_logprobs_idx = tops


def per_row(logprobs: RoundLogprobs, num_rows: int) -> Tensor:
    """`[R, L]` float32, 0 in rows that return none."""
    whole = logprobs.chosen.new_zeros((num_rows, logprobs.chosen.shape[1]))
    rows = torch.tensor(logprobs.rows).to(whole.device, non_blocking=True)
    return whole.index_copy(0, rows, logprobs.chosen)


def per_position(logprobs: RoundLogprobs, num_rows: int, width: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """Values and ids of the alternatives, a tensor for each of R x L positions, empty where none are returned."""
    if logprobs.top_values is None or logprobs.top_ids is None:
        return None
    values = [logprobs.top_values.new_empty(0)] * (num_rows * width)
    ids = [logprobs.top_ids.new_empty(0)] * (num_rows * width)
    for number, (row, count) in enumerate(zip(logprobs.rows, logprobs.num_tops, strict=True)):
        for offset in range(width):
            values[row * width + offset] = logprobs.top_values[number, offset, :count]
            ids[row * width + offset] = logprobs.top_ids[number, offset, :count]
    return values, ids
