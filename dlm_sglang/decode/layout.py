"""Where the query tokens of a round lie: it depends on the rows' widths alone, so rounds share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from dlm_kernels.ops.advance_rows import RowHints
from torch import Tensor

from dlm_sglang.decode.policy import DecodePolicy


@dataclass(frozen=True)
class RoundLayout:
    """R rows with their policies and T query tokens, rows one after another.

    The host knows everything here without reading the device. A row is as wide as the longest block that it may be
    in; a shorter one, and one that the context's end cuts, leaves padding tokens at the end of its row.

    Attributes:
        widths: `[R]` int32, query tokens per row.
        max_width: L, the widest row.
        num_tokens: T.
        is_uniform: all rows are equally wide.
        row_of_token, offset_of_token: `[T]` int64.
        token_index: `[R, L]` int64, flat index of each block position; past a row's end it repeats the last.
        is_autoregressive: every row decodes one token at a time.
        may_sample: some row draws its tokens.
        may_draft: some row's policy uses the drafter adapter.
        ranks_masks: some row fills its block in more than one step, so confidences are compared.
        hints: what else `advance_rows` may know of all rows.
    """

    widths: Tensor
    max_width: int
    num_tokens: int
    is_uniform: bool
    row_of_token: Tensor
    offset_of_token: Tensor
    token_index: Tensor
    is_autoregressive: bool
    may_sample: bool
    may_draft: bool
    ranks_masks: bool
    hints: RowHints

    @property
    def num_rows(self) -> int:
        return self.widths.shape[0]

    def per_token(self, per_row: Tensor) -> Tensor:
        """Repeat an `[R]` tensor for every token of its row: `[T]`."""
        if self.max_width == 1:
            return per_row
        return per_row.index_select(0, self.row_of_token)

    def per_block(self, per_position: Tensor) -> Tensor:
        """Bring an `[R, L]` tensor into tokens, the opposite of `per_position`: `[T]`."""
        if self.is_uniform:
            return per_position.reshape(-1)
        return per_position[self.row_of_token, self.offset_of_token]

    def per_position(self, per_token: Tensor) -> Tensor:
        """Bring a `[T]` tensor into rows: `[R, L]`."""
        if self.is_uniform:
            return per_token.view(-1, self.max_width)
        return per_token[self.token_index]


def starts_of(widths: Sequence[int]) -> list[int]:
    """The flat index of each row's first query token."""
    return list(accumulate(widths, initial=0))[: len(widths)]


def make_layout(
    policies: Sequence[DecodePolicy], device: torch.device | str, widths: Sequence[int] | None = None
) -> RoundLayout:
    """Lay out the rounds of a batch; valid until a request joins or leaves it.

    Args:
        policies: R >= 1 policies.
        device: where the rounds run.
        widths: positions of each row; None takes the policies' block lengths.
    """
    if widths is None:
        widths = [policy.first_block_length for policy in policies]
    max_width = max(widths)
    lens = torch.tensor(widths, dtype=torch.int64)
    starts = lens.cumsum(0) - lens
    row_of_token = torch.repeat_interleave(torch.arange(len(widths)), lens)
    offset_of_token = torch.arange(sum(widths)) - starts[row_of_token]
    token_index = starts[:, None] + torch.minimum(torch.arange(max_width), lens[:, None] - 1)

    is_cuda = torch.device(device).type == "cuda"

    def there(tensor: Tensor) -> Tensor:
        # From memory that may be paged out, a larger copy would wait for the device.
        return (tensor.pin_memory() if is_cuda else tensor).to(device, non_blocking=True)

    return RoundLayout(
        widths=there(lens.int()),
        max_width=max_width,
        num_tokens=sum(widths),
        is_uniform=all(width == max_width for width in widths),
        row_of_token=there(row_of_token),
        offset_of_token=there(offset_of_token),
        token_index=there(token_index),
        is_autoregressive=max_width == 1,
        may_sample=any(policy.temperature > 0 for policy in policies),
        may_draft=any(policy.uses_drafter for policy in policies),
        ranks_masks=any(policy.block_length > 1 and policy.max_denoising_steps > 1 for policy in policies),
        hints=RowHints(
            accepts_whole_blocks=any(policy.accepts_whole_block for policy in policies),
            num_stop_ids=max(len(policy.stop_ids) for policy in policies),
            is_autoregressive=max_width == 1,
        ),
    )
