"""Inputs and float64 oracle of block attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

RowKind = Literal["causal", "bidirectional", "dual", "blind"]
# Rows of the slot table that no request uses.
FREE_ROWS = 2


class Bounds(TypedDict):
    """What the host knows of a forward."""

    max_row_len: int
    max_kv_len: int
    page_size: int


@dataclass(frozen=True)
class Row:
    """One row: `length` query tokens after `prefix` keys.

    Kinds: causal token by token; bidirectional inside the block; dual, whose first half is a causal commit and
    whose second half sees everything; blind, whose tokens see no key at all, not even their own.
    """

    length: int
    prefix: int
    kind: RowKind = "causal"

    @property
    def kv_len(self) -> int:
        return self.prefix + self.length

    def limits(self) -> list[int]:
        """`kv_limit` of each token."""
        if self.kind == "blind":
            return [0] * self.length
        num_causal = {"causal": self.length, "bidirectional": 0, "dual": (self.length + 1) // 2}[self.kind]
        causal = [self.prefix + offset + 1 for offset in range(num_causal)]
        return causal + [self.kv_len] * (self.length - num_causal)


@dataclass(frozen=True)
class Case:
    """A forward to build.

    Attributes:
        rows: R rows; a length of 0 makes a padding row.
        num_padding_tokens: query tokens past the last row.
        is_strided: cut the queries out of a wider fused projection, as models do.
        poison: fill whatever no row owns with NaN.
    """

    rows: Sequence[Row]
    num_q_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    v_head_dim: int | None = None
    page_size: int = 1
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    num_padding_tokens: int = 0
    is_strided: bool = True
    poison: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case, named as in `make_plan` and `block_attention`."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    row_lens: Tensor
    kv_lens: Tensor
    kv_limit: Tensor
    slots: Tensor
    slot_table: Tensor
    max_row_len: int
    max_kv_len: int
    page_size: int
    scale: float

    @property
    def lengths(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The positional arguments of `make_plan`."""
        return self.row_lens, self.kv_lens, self.kv_limit, self.slots, self.slot_table

    @property
    def bounds(self) -> Bounds:
        """The host-known arguments of `make_plan`."""
        return {"max_row_len": self.max_row_len, "max_kv_len": self.max_kv_len, "page_size": self.page_size}


def make_inputs(case: Case, device: str = "cpu") -> Inputs:
    """Random queries, and a pool in which the rows own randomly placed pages."""
    generator = torch.Generator(device).manual_seed(case.seed)
    kv_dtype, v_head_dim = case.kv_dtype or case.dtype, case.v_head_dim or case.head_dim
    slot_table, slots, num_slots = _place_pages(case, device, generator)
    kv_lens = [row.kv_len for row in case.rows]
    owned = torch.cat([slot_table[slot, :length] for slot, length in zip(slots, kv_lens, strict=True)]).long()
    num_tokens = sum(row.length for row in case.rows) + case.num_padding_tokens

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def pool(head_dim: int) -> Tensor:
        values = randn(num_slots, case.num_kv_heads, head_dim).to(kv_dtype)
        if not case.poison:
            return values
        poisoned = torch.full_like(values, float("nan"), dtype=torch.float32).to(kv_dtype)
        # Copying single bytes works for every dtype.
        poisoned.view(torch.uint8)[owned] = values.view(torch.uint8)[owned]
        return poisoned

    width = case.num_q_heads + (2 * case.num_kv_heads if case.is_strided else 0)
    q = randn(num_tokens, width, case.head_dim).to(case.dtype)[:, : case.num_q_heads]
    if case.poison and case.num_padding_tokens:
        q[-case.num_padding_tokens :] = float("nan")
    limits = [limit for row in case.rows for limit in row.limits()] + [1 << 30] * case.num_padding_tokens
    return Inputs(
        q=q,
        k_pool=pool(case.head_dim),
        v_pool=pool(v_head_dim),
        row_lens=torch.tensor([row.length for row in case.rows], dtype=torch.int32, device=device),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        kv_limit=torch.tensor(limits, dtype=torch.int32, device=device),
        slots=slots,
        slot_table=slot_table,
        max_row_len=max(max(row.length for row in case.rows), 1),
        max_kv_len=max(*kv_lens, 1),
        page_size=case.page_size,
        scale=case.head_dim**-0.5,
    )


def attend_in_float64(inputs: Inputs, k_scale: float = 1.0, v_scale: float = 1.0) -> Tensor:
    """`[T, Hq, Dv]` float64 on the CPU, one row and head at a time with an explicit softmax."""
    q, k_pool, v_pool = (tensor.cpu().double() for tensor in (inputs.q, inputs.k_pool, inputs.v_pool))
    group = q.shape[1] // k_pool.shape[1]
    out = torch.zeros(q.shape[0], q.shape[1], v_pool.shape[2], dtype=torch.float64)
    table, limits = inputs.slot_table.cpu().long(), inputs.kv_limit.cpu()
    begin = 0
    for row_len, kv_len, slot in zip(
        inputs.row_lens.tolist(), inputs.kv_lens.tolist(), inputs.slots.tolist(), strict=True
    ):
        tokens = slice(begin, begin + row_len)
        begin += row_len
        owned = table[slot, :kv_len]
        is_hidden = torch.arange(kv_len) >= limits[tokens, None]  # [L, S]
        for head in range(q.shape[1]):
            scores = q[tokens, head] @ k_pool[owned, head // group].T * (inputs.scale * k_scale)
            weights = scores.masked_fill(is_hidden, float("-inf")).softmax(1).nan_to_num(0.0)
            out[tokens, head] = weights @ v_pool[owned, head // group] * v_scale
    return out


def _place_pages(case: Case, device: str, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Slot table, table row of each row and pool size: pages in random order, with free ones between them."""
    page_size, num_rows = case.page_size, len(case.rows)
    pages_of = [-(-row.kv_len // page_size) for row in case.rows]
    num_pages = sum(pages_of) + 3
    order = torch.randperm(num_pages, generator=generator, device=device).int()
    # Every entry that is not a row's points at a page that nobody owns.
    columns = max(pages_of) * page_size + page_size
    free_slot = int(order[-1]) * page_size
    table = torch.full((num_rows + FREE_ROWS, columns), free_slot, dtype=torch.int32, device=device)
    slots = torch.randperm(num_rows + FREE_ROWS, generator=generator, device=device)[:num_rows]
    used = 0
    for slot, num_row_pages, row in zip(slots.tolist(), pages_of, case.rows, strict=True):
        pages = order[used : used + num_row_pages]
        used += num_row_pages
        positions = pages[:, None] * page_size + torch.arange(page_size, device=device, dtype=torch.int32)
        table[slot, : row.kv_len] = positions.flatten()[: row.kv_len]
    return table, slots, num_pages * page_size
