"""Block attention's reference against a loop over query tokens."""

from __future__ import annotations

import torch
from dlm_kernels.ops.block_attention import block_attention, make_plan, reference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def _loop(q: Tensor, k_pool: Tensor, v_pool: Tensor, row_of: list[int], kv_limit: Tensor, slots: Tensor) -> Tensor:
    group = q.shape[1] // k_pool.shape[1]
    out = torch.empty_like(q)
    for token in range(q.shape[0]):
        visible = slots[row_of[token], : int(kv_limit[token])].long()
        for head in range(q.shape[1]):
            keys, values = k_pool[visible, head // group], v_pool[visible, head // group]
            weights = torch.softmax(keys @ q[token, head] * q.shape[2] ** -0.5, dim=0)
            out[token, head] = weights @ values
    return out


@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40), st.booleans()), min_size=1, max_size=6),
    num_kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
def test_reference_equals_a_loop_on_ragged_mixed_rows(
    rows: list[tuple[int, int, bool]], num_kv_heads: int, group: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    row_lens = [length for length, _, _ in rows]
    kv_lens = [length + prefix for length, prefix, _ in rows]
    limits, row_of = [], []
    for row, (length, prefix, is_causal) in enumerate(rows):
        row_of += [row] * length
        limits += [prefix + offset + 1 if is_causal else prefix + length for offset in range(length)]
    num_slots = sum(kv_lens) + 7
    order = torch.randperm(num_slots, generator=generator)
    slots = torch.zeros(len(rows), max(kv_lens), dtype=torch.int32)
    used = 0
    for row, kv_len in enumerate(kv_lens):
        slots[row, :kv_len] = order[used : used + kv_len].int()
        used += kv_len
    k_pool = torch.randn(num_slots, num_kv_heads, 8, generator=generator, dtype=torch.float64)
    v_pool = torch.randn(num_slots, num_kv_heads, 8, generator=generator, dtype=torch.float64)
    q = torch.randn(sum(row_lens), num_kv_heads * group, 8, generator=generator, dtype=torch.float64)
    kv_limit = torch.tensor(limits)
    expected = _loop(q, k_pool, v_pool, row_of, kv_limit, slots)
    got = block_attention(q, k_pool, v_pool, make_plan(row_lens, kv_lens, kv_limit, slots), 8**-0.5)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_long_rows_are_cut_into_chunks_and_give_the_same(monkeypatch: object) -> None:
    row_lens, kv_lens = [50, 3], [70, 4]
    slots = torch.arange(140).view(2, 70)
    limits = torch.cat([torch.arange(21, 71), torch.tensor([4, 4, 4])])
    q = torch.randn(53, 4, 16)
    k_pool, v_pool = torch.randn(140, 2, 16), torch.randn(140, 2, 16)
    whole = block_attention(q, k_pool, v_pool, make_plan(row_lens, kv_lens, limits, slots), 0.25)
    saved = reference.MAX_MASK_ELEMENTS
    try:
        reference.MAX_MASK_ELEMENTS = 700
        plan = make_plan(row_lens, kv_lens, limits, slots)
        assert len(plan.groups) > 2
        torch.testing.assert_close(block_attention(q, k_pool, v_pool, plan, 0.25), whole)
    finally:
        reference.MAX_MASK_ELEMENTS = saved
