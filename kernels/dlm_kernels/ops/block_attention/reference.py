"""Plain-torch block attention: the specification, the CPU path and the test oracle of the kernel.

One contract serves every row kind. Each query token carries `kv_limit`: it sees the keys of its own row
at positions below that limit. A bidirectional block has the block's end as limit, a causal token its own
position + 1, so denoise, commit, autoregressive and prefill rows are one call without flags or mask tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Ints: TypeAlias = npt.NDArray[np.int32 | np.int64]

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
        token_index: `[R, L]`; padding repeats a row's last token. None where the group's tokens are all tokens of the
            forward, in order.
        slots: `[R, S]`, pool slots; padding repeats the row's last visible one, which is always readable.
        limits: `[R, L]`, visible keys of each token.
    """

    token_index: Tensor | None
    slots: Tensor
    limits: Tensor
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


class _Table(NamedTuple):
    """Pool slots `[S, C]` of all request slots, and the request slots `[R]` int64 of a group's rows."""

    slot_table: Tensor
    slots: Ints

    def first(self, num_keys: int) -> npt.NDArray[np.int64]:
        """Pool slots of each row's first keys: `[R, num_keys]`."""
        if self.slot_table.is_cpu:
            return self.slot_table.numpy()[self.slots, :num_keys].astype(np.int64)
        return self.slot_table[self.beside(self.slots), :num_keys].cpu().numpy().astype(np.int64)

    def beside(self, array: Ints) -> Tensor:
        """The array as a tensor on the table's device."""
        tensor = torch.from_numpy(array)
        return tensor if self.slot_table.is_cpu else tensor.to(self.slot_table.device)


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
    # Many small steps on small arrays, which numpy calls in a fraction of torch's time.
    limits, rows_kv, table = _on_host(kv_limit), _on_host(kv_lens), _Table(slot_table, _on_host(slots))
    lens, kv_lens_list, num_tokens = row_lens.tolist(), rows_kv.tolist(), limits.size
    if _is_uniform(lens, kv_lens_list, num_tokens) and limits.min() > 0:
        group = _padded_group(None, limits.reshape(len(lens), -1), rows_kv, table)
        return ReferencePlan((group,), num_tokens, None)
    starts = list(accumulate(lens, initial=0))
    if starts[-1] > num_tokens:
        raise ValueError(f"row_lens must sum to at most the {num_tokens} entries of kv_limit, got {starts[-1]}")
    rows = [row for row, length in enumerate(lens) if length > 0]
    work = sum(map(mul, lens, kv_lens_list))
    max_kv_len = max((kv_lens_list[row] for row in rows), default=0)
    if _may_pad(work, len(rows) * max(lens, default=0), max_kv_len):
        batches = [[(row, starts[row], lens[row]) for row in rows]] if work else []
    else:
        batches = [
            [(row, starts[row] + begin, min(chunk, lens[row] - begin))]
            for row in rows
            if kv_lens_list[row] > 0
            for chunk in [max(1, MAX_MASK_ELEMENTS // kv_lens_list[row])]
            for begin in range(0, lens[row], chunk)
        ]
    groups = [_make_group(batch, rows_kv, limits, table) for batch in batches]
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
        if group.token_index is None:
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
    rows, length = group.limits.shape
    queries = q if group.token_index is None else q[group.token_index]
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


def _on_host(tensor: Tensor) -> Ints:
    array: Ints = (tensor if tensor.is_cpu else tensor.cpu()).numpy()
    return array


def _is_uniform(lens: list[int], kv_lens: list[int], num_tokens: int) -> bool:
    """Whether the rows are as those of a decode round mostly are: of one width, none left out, one batch."""
    width = lens[0] if lens else 0
    is_whole = width > 0 and width * len(lens) == num_tokens and lens.count(width) == len(lens)
    return is_whole and min(kv_lens) > 0 and _may_pad(width * sum(kv_lens), num_tokens, max(kv_lens))


def _may_pad(work: int, num_padded_tokens: int, max_kv_len: int) -> bool:
    """Whether rows run as one padded batch.

    Args:
        work: pairs of a query token and a key of its row.
        num_padded_tokens: query tokens once every row has the longest one's.
        max_kv_len: keys of the longest row.
    """
    padded_work = num_padded_tokens * max_kv_len
    return padded_work <= MAX_PADDING_FACTOR * work and padded_work <= MAX_MASK_ELEMENTS


def _make_group(batch: list[tuple[int, int, int]], kv_lens: Ints, kv_limit: Ints, table: _Table) -> _Group:
    """Group of `(row, first token, tokens)` triples."""
    row_ids, begins, lens = np.array(batch).T
    offsets = np.minimum(np.arange(lens.max()), lens[:, None] - 1)
    token_index = begins[:, None] + offsets
    is_whole = lens.sum() == token_index.size == kv_limit.size
    table = _Table(table.slot_table, table.slots[row_ids])
    return _padded_group(None if is_whole else token_index, kv_limit[token_index], kv_lens[row_ids], table)


def _padded_group(token_index: Ints | None, limits: Ints, kv_lens: Ints, table: _Table) -> _Group:
    """Group of R rows: `token_index` and `limits` are `[R, L]`, `kv_lens` and the table's slots `[R]`."""
    limits = np.minimum(limits, kv_lens[:, None])
    visible = np.maximum(limits.max(axis=1), 1).tolist()
    num_keys = max(visible)
    key_slots = table.first(num_keys)
    for row, num_visible in enumerate(visible):
        if num_visible < num_keys:
            key_slots[row, num_visible:] = key_slots[row, num_visible - 1]
    return _Group(
        None if token_index is None else table.beside(token_index), table.beside(key_slots), table.beside(limits)
    )
