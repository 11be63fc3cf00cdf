"""Plain-torch block attention: the specification, the CPU path and the test oracle of the kernel.

One contract serves every row kind. Each query token carries `kv_limit`: it sees the keys of its own row
at positions below that limit. A bidirectional block has the block's end as limit, a causal token its own
position + 1, so denoise, commit, autoregressive and prefill rows are one call without flags or mask tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Lengths: TypeAlias = npt.NDArray[np.int32 | np.int64]

# Rows are padded to the longest row and run as one batch while padding costs at most this factor.
MAX_PADDING_FACTOR = 2.0
# Upper bound for one row's `query x key` mask; longer rows are cut into query chunks.
MAX_MASK_ELEMENTS = 1 << 22
# Masks up to this size are kept from layer to layer.
MAX_CACHED_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class _Group:
    """Rows that run as one padded batch of R rows, L query tokens and S keys.

    Attributes:
        token_index: `[R, L]`; padding repeats a row's last token.
        slots: `[R, S]`, pool slots; padding repeats the row's last visible one, which is always readable.
        limits: `[R, L]`, visible keys of each token.
        is_whole: the group's tokens are all tokens of the forward, in order.
    """

    token_index: Tensor
    slots: Tensor
    limits: Tensor
    is_whole: bool
    bias_cache: dict[tuple[torch.dtype, int], Tensor | None] = field(default_factory=dict, compare=False)
    line_cache: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def bias(self, dtype: torch.dtype, group_size: int) -> Tensor | None:
        """Additive mask `[R, 1, G * L, S]`, 0 where visible; None where every token sees every key."""
        key = (dtype, group_size)
        if key in self.bias_cache:
            return self.bias_cache[key]
        hidden = torch.arange(self.slots.shape[1], device=self.limits.device) >= self.limits[..., None]
        bias = None
        if hidden.any():
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            bias = bias.masked_fill_(hidden, float("-inf"))[:, None].repeat(1, 1, group_size, 1)
        # A long prompt has many groups: keeping all their masks for the forward would take more memory than time.
        if bias is None or bias.numel() <= MAX_CACHED_ELEMENTS:
            self.bias_cache[key] = bias
        return bias

    def gather(self, pool: Tensor, dtype: torch.dtype) -> Tensor:
        """`[R, Hkv, S, D]` keys or values, contiguous: attention runs faster on them than on a transposed view."""
        num_heads, head_dim = pool.shape[1], pool.shape[2]
        if num_heads not in self.line_cache:
            heads = torch.arange(num_heads, device=pool.device)[:, None]
            self.line_cache[num_heads] = (self.slots[:, None] * num_heads + heads).flatten()
        lines = pool.reshape(-1, head_dim).index_select(0, self.line_cache[num_heads])
        return lines.view(self.slots.shape[0], num_heads, -1, head_dim).to(dtype)


@dataclass(frozen=True)
class ReferencePlan:
    """What does not change from layer to layer of one forward.

    Attributes:
        groups: padded batches that together hold every query token of a row once.
        num_tokens: T, query tokens in the forward, those of no row included.
        blind_tokens: tokens that see no key; None where there are none.
    """

    groups: tuple[_Group, ...]
    num_tokens: int
    blind_tokens: Tensor | None


def make_plan(row_lens: Tensor, kv_lens: Tensor, kv_limit: Tensor, slots: Tensor, slot_table: Tensor) -> ReferencePlan:
    """`op.make_plan` for the reference. Bounds and page size are not needed: it reads lengths and every slot.

    Raises:
        ValueError: more query tokens in the rows than limits.
    """
    lens, kv_lens_list, num_tokens = row_lens.tolist(), kv_lens.tolist(), kv_limit.numel()
    starts = list(accumulate(lens, initial=0))
    if starts[-1] > num_tokens:
        raise ValueError(f"row_lens must sum to at most the {num_tokens} entries of kv_limit, got {starts[-1]}")
    # Many small steps on small arrays, which numpy calls in a fraction of torch's time.
    limits, rows_kv = kv_limit.cpu().numpy(), kv_lens.cpu().numpy()
    rows = [row for row, length in enumerate(lens) if length > 0]
    max_len = max((lens[row] for row in rows), default=0)
    max_kv = max((kv_lens_list[row] for row in rows), default=0)
    padded_work = len(rows) * max_len * max_kv
    work = sum(lens[row] * kv_lens_list[row] for row in rows)
    if padded_work <= MAX_PADDING_FACTOR * work and padded_work <= MAX_MASK_ELEMENTS:
        batches = [[(row, starts[row], lens[row]) for row in rows]] if work else []
    else:
        batches = [
            [(row, starts[row] + begin, min(chunk, lens[row] - begin))]
            for row in rows
            if kv_lens_list[row] > 0
            for chunk in [max(1, MAX_MASK_ELEMENTS // kv_lens_list[row])]
            for begin in range(0, lens[row], chunk)
        ]
    groups = [_make_group(batch, rows_kv, limits, slots, slot_table) for batch in batches]
    blind = limits <= 0
    if 0 in kv_lens_list:
        blind[: starts[-1]] |= np.repeat(rows_kv <= 0, lens)
    blind_tokens = torch.from_numpy(blind.nonzero()[0]).to(kv_limit.device) if blind.any() else None
    return ReferencePlan(tuple(groups), num_tokens, blind_tokens)


def block_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    plan: ReferencePlan,
    scale: float,
    *,
    k_scale: float | Tensor | None = None,
    v_scale: float | Tensor | None = None,
) -> Tensor:
    """`op.block_attention` in plain torch, for any device, head dim and floating-point dtype."""
    if k_scale is not None:
        scale = scale * float(k_scale)
    out: Tensor | None = None
    for group in plan.groups:
        attended = _attend(q, k_pool, v_pool, group, scale)
        if group.is_whole:
            out = attended.reshape(q.shape[0], q.shape[1], v_pool.shape[2])
            break
        if out is None:
            out = q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[2])
        # Padding repeats a row's last token, so a duplicate writes the same value twice.
        out[group.token_index] = attended
    if out is None:
        return q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[2])
    if plan.blind_tokens is not None:
        out[plan.blind_tokens] = 0
    return out if v_scale is None else out * v_scale


def _attend(q: Tensor, k_pool: Tensor, v_pool: Tensor, group: _Group, scale: float) -> Tensor:
    """`[R, L, Hq, Dv]` of one group."""
    num_q_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads, v_head_dim = v_pool.shape[1], v_pool.shape[2]
    group_size = num_q_heads // num_kv_heads
    rows, length = group.token_index.shape
    queries = q if group.is_whole else q[group.token_index]
    # [R, L, Hkv, G, D] -> [R, Hkv, G * L, D]: all heads that share a key head become one tile.
    packed = queries.reshape(rows, length, num_kv_heads, group_size, head_dim).permute(0, 2, 3, 1, 4)
    packed = packed.reshape(rows, num_kv_heads, group_size * length, head_dim)
    attended = scaled_dot_product_attention(
        packed,
        group.gather(k_pool, q.dtype),
        group.gather(v_pool, q.dtype),
        attn_mask=group.bias(q.dtype, group_size),
        scale=scale,
    )
    attended = attended.reshape(rows, num_kv_heads, group_size, length, v_head_dim).permute(0, 3, 1, 2, 4)
    return attended.reshape(rows, length, num_q_heads, v_head_dim)


def _make_group(
    batch: list[tuple[int, int, int]], kv_lens: Lengths, kv_limit: Lengths, slots: Tensor, slot_table: Tensor
) -> _Group:
    """Group of `(row, first token, tokens)` triples."""
    max_len = max(length for _, _, length in batch)
    num_tokens = sum(length for _, _, length in batch)
    is_whole = num_tokens == kv_limit.size == len(batch) * max_len
    if is_whole and len(batch) == kv_lens.size:
        # Decode rounds mostly are so: rows of one width, none left out, nothing to look up.
        token_index = np.arange(num_tokens).reshape(-1, max_len)
        limits = kv_limit.reshape(-1, max_len)
    else:
        row_ids, begins, lens = np.array(batch).T
        token_index = begins[:, None] + np.minimum(np.arange(max_len), lens[:, None] - 1)
        limits, kv_lens, slots = kv_limit[token_index], kv_lens[row_ids], slots[torch.from_numpy(row_ids)]
    limits = np.minimum(limits, kv_lens[:, None])
    visible = np.maximum(limits.max(axis=1), 1)
    num_keys = int(visible.max())
    if slot_table.is_cpu:
        key_slots = slot_table.numpy()[slots.numpy(), :num_keys].astype(np.int64)
    else:
        key_slots = slot_table[slots.long(), :num_keys].cpu().numpy().astype(np.int64)
    if visible.min() < num_keys:
        last = key_slots[np.arange(len(batch)), visible - 1]
        key_slots = np.where(np.arange(num_keys) < visible[:, None], key_slots, last[:, None])
    tensors = [torch.from_numpy(array).to(slot_table.device) for array in (token_index, key_slots, limits)]
    return _Group(tensors[0], tensors[1], tensors[2], is_whole)
