"""Block attention's reference against a loop over query tokens, and the op's argument checks."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from dlm_kernels.ops.block_attention import block_attention, make_plan, reference
from dlm_kernels.testing.block_attention import Case, Inputs, Row, attend_in_float64, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def _loop(inputs: Inputs) -> Tensor:
    q, k_pool, v_pool = inputs.q.double(), inputs.k_pool.double(), inputs.v_pool.double()
    group = q.shape[1] // k_pool.shape[1]
    out = torch.zeros(q.shape[0], q.shape[1], v_pool.shape[2], dtype=torch.float64)
    row_of = [row for row, length in enumerate(inputs.row_lens.tolist()) for _ in range(length)]
    for token, row in enumerate(row_of):
        visible = inputs.slot_table[inputs.slots[row], : int(inputs.kv_limit[token])].tolist()
        for head in range(q.shape[1]):
            scores = [float(q[token, head] @ k_pool[slot, head // group]) * inputs.scale for slot in visible]
            weights = [math.exp(score - max(scores)) for score in scores]
            for slot, weight in zip(visible, weights, strict=True):
                out[token, head] += weight / sum(weights) * v_pool[slot, head // group]
    return out


def _reference(inputs: Inputs) -> Tensor:
    plan = make_plan(*inputs.lengths, **inputs.bounds)
    return block_attention(inputs.q, inputs.k_pool, inputs.v_pool, plan, inputs.scale)


def _kernel(inputs: Inputs) -> Tensor:
    plan = make_plan(*inputs.lengths, **inputs.bounds, use_kernel=True)
    return block_attention(inputs.q, inputs.k_pool, inputs.v_pool, plan, inputs.scale)


row_strategy = st.builds(
    Row, st.integers(0, 9), st.integers(0, 40), st.sampled_from(["causal", "bidirectional", "dual", "blind"])
)


@settings(max_examples=50)
@given(
    rows=st.lists(row_strategy, min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2)]),
    page_size=st.sampled_from([1, 16]),
    num_padding_tokens=st.integers(0, 3),
    is_strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_reference_equals_a_loop_on_ragged_mixed_rows(
    rows: list[Row], heads: tuple[int, int], page_size: int, num_padding_tokens: int, is_strided: bool, seed: int
) -> None:
    case = Case(
        rows,
        *heads,
        head_dim=4,
        v_head_dim=8,
        page_size=page_size,
        num_padding_tokens=num_padding_tokens,
        is_strided=is_strided,
        seed=seed,
        dtype=torch.float64,
    )
    inputs = make_inputs(case)
    expected = _loop(inputs)
    torch.testing.assert_close(_reference(inputs), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attend_in_float64(inputs), expected, rtol=1e-9, atol=1e-9)


def test_rows_of_one_length_are_one_batch() -> None:
    inputs = make_inputs(Case([Row(7, 40), Row(7, 63, "bidirectional"), Row(7, 50, "dual")], dtype=torch.float64))
    plan = make_plan(*inputs.lengths, **inputs.bounds)
    assert [group.token_index is None for group in plan.groups] == [True]
    torch.testing.assert_close(_reference(inputs), _loop(inputs))


@pytest.mark.parametrize("limit", [0, -2])
def test_a_row_that_sees_no_key_reads_its_first_slot_at_most(limit: int) -> None:
    inputs = make_inputs(Case([Row(1, 4), Row(1, 6)], dtype=torch.float64))
    whole = _reference(inputs)
    table = inputs.slot_table.clone()
    table[inputs.slots[0], 1:] = 1 << 30
    got = _reference(replace(inputs, slot_table=table, kv_limit=torch.tensor([limit, int(inputs.kv_limit[1])])))
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    torch.testing.assert_close(got[1], whole[1])


def test_long_rows_are_cut_into_chunks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(Case([Row(150, 20), Row(3, 1, "bidirectional")], dtype=torch.float64))
    whole = _reference(inputs)
    monkeypatch.setattr(reference, "MAX_MASK_ELEMENTS", 700)
    assert len(make_plan(*inputs.lengths, **inputs.bounds).groups) > 2
    torch.testing.assert_close(_reference(inputs), whole)
    torch.testing.assert_close(attend_in_float64(inputs), whole)


def test_scales_apply_to_stored_keys_and_values() -> None:
    inputs = make_inputs(Case([Row(5, 20), Row(2, 2)], dtype=torch.float64))
    plan = make_plan(*inputs.lengths, **inputs.bounds)
    got = block_attention(
        inputs.q, inputs.k_pool, inputs.v_pool, plan, inputs.scale, k_scale=2.0, v_scale=torch.tensor([0.25])
    )
    stored = replace(inputs, k_pool=inputs.k_pool * 2, v_pool=inputs.v_pool * 0.25)
    torch.testing.assert_close(got, _reference(stored))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_lens": torch.ones(3, dtype=torch.int32)}, "one entry per row, got 2, 3 and 2"),
        ({"row_lens": torch.ones(2)}, "row_lens must be a 1-D int32 or int64 tensor on cpu, got 1-D torch.float32"),
        ({"max_kv_len": 10_000}, r"slot_table must be \[S, >= 10000\]"),
        ({"row_lens": torch.tensor([9, 9], dtype=torch.int32)}, "sum to at most the 7 entries of kv_limit, got 18"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    inputs = replace(make_inputs(Case([Row(5, 20), Row(2, 2)])), **changes)
    with pytest.raises(ValueError, match=message):
        make_plan(*inputs.lengths, **inputs.bounds)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case([Row(5, 20)], head_dim=96), "head dims must be in"),
        (Case([Row(5, 20)], dtype=torch.float64), "q must be one of"),
        (Case([Row(5, 20)], num_q_heads=65, num_kv_heads=1), "at most 64 query heads may share a key head, got 65/1"),
        (Case([Row(5, 20)], page_size=8), "page_size must be one of"),
    ],
)
def test_what_the_kernel_does_not_have_is_refused(case: Case, message: str) -> None:
    inputs = make_inputs(case)
    with pytest.raises(ValueError, match=message):
        _kernel(inputs)


def test_the_reference_works_where_triton_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from dlm_kernels.ops.block_attention import block_attention, make_plan\n"
        "from dlm_kernels.testing.block_attention import Case, Row, make_inputs\n"
        "inputs = make_inputs(Case([Row(3, 5)]))\n"
        "plan = make_plan(*inputs.lengths, **inputs.bounds)\n"
        "assert block_attention(inputs.q, inputs.k_pool, inputs.v_pool, plan, 0.1).isfinite().all()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_queries_that_do_not_fit_the_plan_are_refused() -> None:
    inputs = make_inputs(Case([Row(5, 20)]))
    plan = make_plan(*inputs.lengths, **inputs.bounds)
    with pytest.raises(ValueError, match=r"q must be \[5, multiple of 2, 64\]"):
        block_attention(inputs.q[:4], inputs.k_pool, inputs.v_pool, plan, inputs.scale)
