"""Shapes that many rounds are padded to, so that one captured graph serves all of them (performance file 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dlm_kernels.ops.advance_rows import RowHints
from torch.nn.functional import pad

from dlm_sglang.decode.layout import RoundLayout


@dataclass(frozen=True, order=True)
class Bucket:
    """Query tokens T, rows R and widest row L of a padded round.

    Where every row is one token wide, padding is rows of their own; else the last row is always padding.
    """

    num_tokens: int
    num_rows: int
    max_width: int

    @property
    def is_autoregressive(self) -> bool:
        return self.max_width == 1


def make_buckets(max_rows: int, max_width: int, max_tokens: int) -> tuple[Bucket, ...]:
    """Every bucket of a server, smallest first.

    Token counts double, with one step between from 8 on, so that padding stays below a third.

    Args:
        max_rows: requests that run at a time.
        max_width: longest block.
        max_tokens: most query tokens in a bucket; larger rounds run as they are.
    """
    widths = sorted({1, max_width, *(1 << power for power in range(3, max_width.bit_length()))} - {0})
    buckets = []
    for width in (width for width in widths if width <= max_width):
        limit = min(max_tokens, max_rows * width)
        sizes = {size for power in range(limit.bit_length()) for size in (1 << power, 3 << power >> 1)} | {limit}
        buckets += [
            Bucket(size, size if width == 1 else min(size, max_rows) + 1, width)
            for size in sizes
            if width <= size <= limit and (size < 8 or size % 4 == 0 or size == limit)
        ]
    return tuple(sorted(buckets))


def bucket_of(layout: RoundLayout, buckets: Sequence[Bucket]) -> Bucket | None:
    """The first bucket of the sorted `buckets` that a round fits in, or None."""
    for bucket in buckets:
        spare_rows = 0 if bucket.is_autoregressive else 1
        if (
            bucket.num_tokens >= layout.num_tokens
            and bucket.num_rows >= layout.num_rows + spare_rows
            and bucket.max_width >= layout.max_width
            and bucket.is_autoregressive == layout.is_autoregressive
        ):
            return bucket
    return None


def pad_layout(layout: RoundLayout, bucket: Bucket) -> RoundLayout:
    """A layout of the bucket's shape whose first rows and tokens are `layout`'s.

    Where rows are wider than one token, padding rows have no tokens, and padding tokens are said to be of the last
    row. The result claims every trait, since one graph serves all rounds of its shape.
    """
    device, num_tokens, num_rows = layout.widths.device, bucket.num_tokens, bucket.num_rows
    if bucket.is_autoregressive:
        widths = torch.ones(num_rows, dtype=torch.int32, device=device)
        row_of_token = torch.arange(num_rows, device=device)
        offset_of_token, token_index = torch.zeros_like(row_of_token), row_of_token[:, None]
    else:
        num_pad_tokens = num_tokens - layout.num_tokens
        widths = pad(layout.widths, (0, num_rows - layout.num_rows))
        row_of_token = pad(layout.row_of_token, (0, num_pad_tokens), value=num_rows - 1)
        offset_of_token = pad(layout.offset_of_token, (0, num_pad_tokens))
        token_index = torch.zeros((num_rows, bucket.max_width), dtype=torch.int64, device=device)
        token_index[: layout.num_rows, : layout.max_width] = layout.token_index
        token_index[: layout.num_rows, layout.max_width :] = layout.token_index[:, -1:]
    return RoundLayout(
        widths=widths,
        max_width=bucket.max_width,
        num_tokens=num_tokens,
        is_uniform=False,
        row_of_token=row_of_token,
        offset_of_token=offset_of_token,
        token_index=token_index,
        is_autoregressive=bucket.is_autoregressive,
        may_sample=True,
        may_draft=not bucket.is_autoregressive,
        ranks_masks=not bucket.is_autoregressive,
        hints=RowHints(is_autoregressive=bucket.is_autoregressive),
    )
