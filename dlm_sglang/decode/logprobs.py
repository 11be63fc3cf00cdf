"""Log-probabilities of what a round emitted: the causal distribution of its commit rows, as the model gave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dlm_sglang.decode.layout import starts_of

if TYPE_CHECKING:
    from dlm_sglang.decode.round import RoundOutputs


class RoundLogprobs(NamedTuple):
    """Log-probabilities of `R'` rows.

    Attributes:
        rows: indexes of the rows in the round.
        num_tops: alternatives that each row asked for.
        chosen: `[R', L]` float32, of the emitted tokens.
        top_values, top_ids: `[R', L, K]` float32 and int64, the K most probable tokens; None where no row asks.
    """

    rows: tuple[int, ...]
    num_tops: tuple[int, ...]
    chosen: Tensor
    top_values: Tensor | None
    top_ids: Tensor | None


@dataclass(frozen=True)
class LogprobRows:
    """The rows of a round whose log-probabilities are returned.

    Attributes:
        rows: indexes of the rows in the round.
        num_tops: alternatives that each row asked for.
        index: `[R']` int64, the same indexes on the device.
        tokens: `[R', L]` int64, flat index of each of their positions; past a row's end it repeats the last.
    """

    rows: tuple[int, ...]
    num_tops: tuple[int, ...]
    index: Tensor
    tokens: Tensor

    @classmethod
    def of(
        cls, num_tops: Sequence[tuple[int, int]], widths: Sequence[int], device: torch.device | str
    ) -> LogprobRows | None:
        """Rows `(index, alternatives)` of a round with these widths; None where there are none."""
        if not num_tops:
            return None
        rows = tuple(row for row, _ in num_tops)
        all_starts = starts_of(widths)
        starts = [all_starts[row] for row in rows]
        width = max(widths)
        tokens = [
            [start + min(offset, widths[row] - 1) for offset in range(width)]
            for row, start in zip(rows, starts, strict=True)
        ]
        there = [torch.tensor(values).to(device, non_blocking=True) for values in (rows, tokens)]
        return cls(rows, tuple(count for _, count in num_tops), *there)

    def raw(self, logits: Tensor) -> Tensor:
        """The rows' logits `[R', L, V]` before anything changes them."""
        return logits[self.tokens]

    def of_outputs(self, raw: Tensor, outputs: RoundOutputs) -> RoundLogprobs:
        """Log-probabilities of the emitted tokens: position j of a commit row chose the j-th of them."""
        width = outputs.token_ids.shape[1]
        return log_probabilities(self.rows, self.num_tops, raw[:, :width], outputs.token_ids[self.index])


def log_probabilities(
    rows: tuple[int, ...], num_tops: tuple[int, ...], logits: Tensor, token_ids: Tensor
) -> RoundLogprobs:
    """Log-probabilities of tokens and of the most probable ones.

    Args:
        rows: indexes of the rows.
        num_tops: alternatives that each row asked for.
        logits: `[R', L, V]` float.
        token_ids: `[R', L]` int64.
    """
    logits = logits.float()
    norm = logits.logsumexp(dim=-1, keepdim=True)
    chosen = logits.gather(-1, token_ids[..., None]) - norm
    top_values = top_ids = None
    if max(num_tops) > 0:
        top_values, top_ids = logits.topk(min(max(num_tops), logits.shape[-1]), dim=-1)
        top_values = top_values - norm
    return RoundLogprobs(rows, num_tops, chosen.squeeze(-1), top_values, top_ids)
