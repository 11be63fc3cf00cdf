"""Plain-torch block attention: the specification, the CPU path and the test oracle of the kernel.

One contract serves every row kind. Each query token carries `kv_limit`: it sees the keys of its own row
at positions below that limit. A bidirectional block has the block's end as limit, a causal token its own
position + 1, so denoise, commit, autoregressive and prefill rows are one call without flags or mask tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Rows are padded to the longest row and run as one batch while padding costs at most this factor.
MAX_PADDING_FACTOR = 2.0
# Upper bound for one row's `query x key` mask; longer rows are cut into query chunks.
MAX_MASK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class _Group:
    """Rows that run as one padded batch: `token_index [R, L]`, `slots [R, S]`, `bias [R, 1, L, S]`."""

    token_index: Tensor
    slots: Tensor
    bias: Tensor
    is_dense: bool


@dataclass(frozen=True)
class BlockAttentionPlan:
    """What does not change from layer to layer of one forward.

    Attributes:
        groups: padded batches that together hold every query token once.
        num_tokens: T, query tokens in the forward.
    """

    groups: tuple[_Group, ...]
    num_tokens: int


def make_plan(row_lens: list[int], kv_lens: list[int], kv_limit: Tensor, kv_slots: Tensor) -> BlockAttentionPlan:
    """Lay a ragged forward out once, for all layers.

    Args:
        row_lens: R query lengths, each >= 1; their sum is T.
        kv_lens: R key lengths, own query tokens included.
        kv_limit: `[T]` int64, keys at row positions below it are visible, 1..kv_len.
        kv_slots: `[R, >= max(kv_lens)]` integer, pool slot of each row position.

    Returns:
        A plan for `block_attention`.

    Raises:
        ValueError: lengths that do not fit the tensors.
    """
    if sum(row_lens) != kv_limit.numel() or len(row_lens) != len(kv_lens):
        raise ValueError(
            f"row_lens must sum to the {kv_limit.numel()} query tokens and pair with kv_lens, got "
            f"{sum(row_lens)} tokens in {len(row_lens)} rows and {len(kv_lens)} kv_lens"
        )
    starts = [0]
    for length in row_lens:
        starts.append(starts[-1] + length)
    max_len, max_kv = max(row_lens), max(kv_lens)
    padded_work = len(row_lens) * max_len * max_kv
    work = sum(length * kv_len for length, kv_len in zip(row_lens, kv_lens, strict=True))
    if padded_work <= MAX_PADDING_FACTOR * work and padded_work <= MAX_MASK_ELEMENTS:
        groups = [_pad_rows(list(range(len(row_lens))), starts, row_lens, max_kv, kv_limit, kv_slots)]
    else:
        groups = []
        for row, (length, kv_len) in enumerate(zip(row_lens, kv_lens, strict=True)):
            chunk = max(1, MAX_MASK_ELEMENTS // kv_len)
            groups.extend(
                _single_row(row, starts[row] + begin, min(chunk, length - begin), kv_len, kv_limit, kv_slots)
                for begin in range(0, length, chunk)
            )
    return BlockAttentionPlan(tuple(groups), starts[-1])


def block_attention(q: Tensor, k_pool: Tensor, v_pool: Tensor, plan: BlockAttentionPlan, scale: float) -> Tensor:
    """Attend from ragged query blocks to paged keys and values.

    Args:
        q: `[T, Hq, D]` queries, rows one after another.
        k_pool: `[slots, Hkv, D]` keys, this forward's own tokens already written. Hkv divides Hq.
        v_pool: `[slots, Hkv, D]` values.
        plan: layout from `make_plan`.
        scale: softmax scale.

    Returns:
        `[T, Hq, D]`, dtype of `q`.

    Source: NLD report, attention patterns (spec section 2.1); grouped query heads are packed into one tile.
    """
    num_q_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads = k_pool.shape[1]
    group_size = num_q_heads // num_kv_heads
    out = torch.empty_like(q)
    for group in plan.groups:
        rows, length = group.token_index.shape
        queries = q.view(rows, length, num_q_heads, head_dim) if group.is_dense else q[group.token_index]
        # [R, L, Hkv, G, D] -> [R, Hkv, G * L, D]: all heads that share a key head become one tile.
        packed = queries.view(rows, length, num_kv_heads, group_size, head_dim).permute(0, 2, 3, 1, 4)
        packed = packed.reshape(rows, num_kv_heads, group_size * length, head_dim)
        keys = k_pool[group.slots].transpose(1, 2).to(q.dtype)  # [R, Hkv, S, D]
        values = v_pool[group.slots].transpose(1, 2).to(q.dtype)
        bias = group.bias.to(q.dtype)
        if length > 1:
            bias = bias.repeat(1, 1, group_size, 1)
        attended = scaled_dot_product_attention(packed, keys, values, attn_mask=bias, scale=scale)
        attended = attended.reshape(rows, num_kv_heads, group_size, length, head_dim).permute(0, 3, 1, 2, 4)
        attended = attended.reshape(rows, length, num_q_heads, head_dim)
        if group.is_dense:
            return attended.reshape(rows * length, num_q_heads, head_dim)
        # Padding repeats a row's last token, so a duplicate writes the same value twice.
        out[group.token_index] = attended
    return out


def _pad_rows(
    rows: list[int], starts: list[int], row_lens: list[int], max_kv: int, kv_limit: Tensor, kv_slots: Tensor
) -> _Group:
    device = kv_limit.device
    max_len = max(row_lens[row] for row in rows)
    is_dense = all(row_lens[row] == max_len for row in rows)
    begin = torch.tensor([starts[row] for row in rows], device=device)
    last = torch.tensor([row_lens[row] - 1 for row in rows], device=device)
    offsets = torch.arange(max_len, device=device)
    token_index = begin[:, None] + torch.minimum(offsets[None, :], last[:, None])
    return _Group(token_index, kv_slots[:, :max_kv].long(), _bias(kv_limit[token_index], max_kv), is_dense)


def _single_row(row: int, begin: int, length: int, kv_len: int, kv_limit: Tensor, kv_slots: Tensor) -> _Group:
    token_index = torch.arange(begin, begin + length, device=kv_limit.device)[None]
    return _Group(token_index, kv_slots[row, :kv_len][None].long(), _bias(kv_limit[token_index], kv_len), False)


def _bias(limits: Tensor, kv_len: int) -> Tensor:
    """Additive mask `[R, 1, L, S]` of limits `[R, L]`: 0 where visible, -inf elsewhere."""
    visible = torch.arange(kv_len, device=limits.device) < limits[..., None]
    return torch.zeros(visible.shape, device=limits.device).masked_fill_(~visible, float("-inf"))[:, None]
