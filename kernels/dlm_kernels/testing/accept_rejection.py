"""Inputs of rejection sampling: ragged rows, mixed parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from dlm_kernels.ops.sample_token.rows import SamplingRows


class Arguments(TypedDict):
    """Arguments of `accept_rejection`."""

    draft_ids: Tensor
    draft_probs: Tensor | None
    logits: Tensor
    first_row: Tensor
    num_drafts: Tensor
    sampling: SamplingRows
    accept_uniform: Tensor
    excluded_token_id: int


@dataclass(frozen=True)
class Case:
    """Drafts of R requests and what verifies them."""

    draft_ids: Tensor
    draft_probs: Tensor | None
    logits: Tensor
    first_row: Tensor
    num_drafts: Tensor
    sampling: SamplingRows
    accept_uniform: Tensor

    def arguments(self, excluded_token_id: int) -> Arguments:
        """What to call `accept_rejection` with."""
        return {
            "draft_ids": self.draft_ids,
            "draft_probs": self.draft_probs,
            "logits": self.logits,
            "first_row": self.first_row,
            "num_drafts": self.num_drafts,
            "sampling": self.sampling,
            "accept_uniform": self.accept_uniform,
            "excluded_token_id": excluded_token_id,
        }


def make_case(
    *,
    num_rows: int,
    length: int,
    vocab_size: int,
    one_hot: bool,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Case:
    """Draw a case: 0 to `length` drafts per request, greedy and sampled requests mixed."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_rows,), generator=generator)].to(device)

    num_drafts = torch.randint(0, length + 1, (num_rows,), generator=generator)
    num_logits_rows = int((num_drafts + 1).sum())
    logits = torch.randn(num_logits_rows, vocab_size, generator=generator) * 2
    drafters = torch.softmax(torch.randn(num_rows * length, vocab_size, generator=generator) * 2, dim=-1)
    draft_ids = torch.zeros(num_rows, 0, dtype=torch.int64)
    if length > 0:
        draft_ids = torch.multinomial(drafters, 1, generator=generator).view(num_rows, length)
    sampling = SamplingRows(
        temperature=pick(0.0, 0.7, 1.0, 2.0),
        top_k=pick(-1, -1, 1, 3).long(),
        top_p=pick(1.0, 1.0, 0.9, 0.5),
        min_p=pick(0.0, 0.0, 0.1),
        uniform=torch.rand(num_rows, dtype=torch.float64, generator=generator).to(device),
    )
    return Case(
        draft_ids.to(device),
        None if one_hot else drafters.view(num_rows, length, vocab_size).to(device),
        logits.to(dtype).to(device),
        (num_drafts.cumsum(0) - num_drafts + torch.arange(num_rows)).to(device),
        num_drafts.to(device),
        sampling,
        torch.rand(num_rows, length, dtype=torch.float64, generator=generator).to(device),
    )
