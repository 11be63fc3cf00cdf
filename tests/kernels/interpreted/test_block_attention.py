"""Block attention's kernels against the float64 oracle and the reference, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from dlm_kernels.ops.block_attention import block_attention, launch, make_plan, plan
from dlm_kernels.testing.block_attention import Case, Inputs, Row, attend_in_float64, make_inputs
from dlm_kernels.testing.tolerances import MAX_RELATIVE_ERROR, relative_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

MIXED = (
    Row(8, 100, "bidirectional"),
    Row(1, 63),
    Row(0, 5),
    Row(7, 0),
    Row(8, 300, "dual"),
    Row(3, 4, "blind"),
    Row(1, 0),
)


@pytest.fixture(autouse=True)
def restored_sizes() -> Iterator[None]:
    sizes = launch.INTERPRETER_SMS, launch.MERGE_ROWS, plan.DETERMINISTIC_CHUNK_LEN
    yield
    launch.INTERPRETER_SMS, launch.MERGE_ROWS, plan.DETERMINISTIC_CHUNK_LEN = sizes


def _run(inputs: Inputs, **options: object) -> Tensor:
    forward = make_plan(*inputs.lengths, **{**inputs.bounds, **options}, use_kernel=True)
    return block_attention(inputs.q, inputs.k_pool, inputs.v_pool, forward, inputs.scale)


def _check(case: Case, **options: object) -> None:
    inputs = make_inputs(case)
    got = _run(inputs, **options)
    expected = attend_in_float64(inputs)
    assert relative_error(got, expected) <= MAX_RELATIVE_ERROR[case.dtype]
    blind = inputs.kv_limit <= 0
    assert (got[blind] == 0).all()
    assert (got[got.shape[0] - case.num_padding_tokens :] == 0).all()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("page_size", [1, 16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mixed_rows(dtype: torch.dtype, page_size: int, deterministic: bool) -> None:
    case = Case(MIXED, page_size=page_size, dtype=dtype, num_padding_tokens=5, seed=page_size)
    _check(case, deterministic=deterministic)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 32, 63, 64, 65])
def test_row_lengths_around_the_tile_sizes(length: int) -> None:
    _check(Case([Row(length, 70, "dual"), Row(length, 0)], dtype=torch.float16))


@pytest.mark.parametrize("kv_len", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192])
def test_key_lengths_around_the_tile_and_page_sizes(kv_len: int) -> None:
    _check(Case([Row(1, kv_len - 1), Row(1, kv_len, "bidirectional")], page_size=16, dtype=torch.float16))


@pytest.mark.parametrize(("head_dim", "v_head_dim"), [(128, 128), (256, 256), (128, 64), (64, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_head_dims(dtype: torch.dtype, head_dim: int, v_head_dim: int) -> None:
    rows = [Row(4, 90, "bidirectional"), Row(1, 40)]
    _check(Case(rows, head_dim=head_dim, v_head_dim=v_head_dim, page_size=32, dtype=dtype))


@pytest.mark.parametrize(("num_q_heads", "num_kv_heads"), [(1, 1), (3, 1), (6, 2), (5, 5), (64, 1), (40, 8)])
def test_head_groups(num_q_heads: int, num_kv_heads: int) -> None:
    rows = [Row(5, 60), Row(2, 130, "bidirectional")]
    _check(Case(rows, num_q_heads, num_kv_heads, dtype=torch.float16))


def test_a_prompt_longer_than_any_tile() -> None:
    _check(Case([Row(150, 20), Row(8, 40, "bidirectional")], dtype=torch.float16, page_size=16))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("page_size", [1, 64])
def test_fp8_pool_with_scales(page_size: int, on_device: bool) -> None:
    inputs = make_inputs(Case(MIXED, page_size=page_size, dtype=torch.float16, kv_dtype=torch.float8_e4m3fn))
    forward = make_plan(*inputs.lengths, **inputs.bounds, use_kernel=True)
    k_scale, v_scale = (torch.tensor([0.5]), torch.tensor([3.0])) if on_device else (0.5, 3.0)
    got = block_attention(
        inputs.q, inputs.k_pool, inputs.v_pool, forward, inputs.scale, k_scale=k_scale, v_scale=v_scale
    )
    expected = attend_in_float64(inputs, 0.5, 3.0)
    assert relative_error(got, expected) <= MAX_RELATIVE_ERROR[torch.float16]
    reference = make_plan(*inputs.lengths, **inputs.bounds, use_kernel=False)
    same = block_attention(
        inputs.q, inputs.k_pool, inputs.v_pool, reference, inputs.scale, k_scale=k_scale, v_scale=v_scale
    )
    assert relative_error(same, expected) <= MAX_RELATIVE_ERROR[torch.float16]


row_strategy = st.builds(
    Row,
    st.one_of(st.integers(0, 12), st.sampled_from([1, 16, 33])),
    st.integers(0, 120),
    st.sampled_from(["causal", "bidirectional", "dual", "blind"]),
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(row_strategy, min_size=1, max_size=4),
    heads=st.sampled_from([(4, 2), (2, 1), (3, 3), (8, 2)]),
    page_size=st.sampled_from([1, 16, 32, 64]),
    num_padding_tokens=st.integers(0, 3),
    is_strided=st.booleans(),
    deterministic=st.booleans(),
    num_sms=st.integers(1, 5),
    slack=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_drawn_shapes(
    rows: Sequence[Row],
    heads: tuple[int, int],
    page_size: int,
    num_padding_tokens: int,
    is_strided: bool,
    deterministic: bool,
    num_sms: int,
    slack: int,
    seed: int,
) -> None:
    if sum(row.length for row in rows) + num_padding_tokens == 0:
        return
    # Time in the interpreter goes by the number of programs.
    launch.INTERPRETER_SMS, launch.MERGE_ROWS, plan.DETERMINISTIC_CHUNK_LEN = num_sms, 16, 64
    case = Case(
        rows,
        *heads,
        page_size=page_size,
        dtype=torch.float16,
        num_padding_tokens=num_padding_tokens,
        is_strided=is_strided,
        seed=seed,
    )
    inputs = make_inputs(case)
    bounds = {
        "max_row_len": inputs.max_row_len + slack,
        "max_kv_len": min(inputs.max_kv_len + slack, inputs.slot_table.shape[1]),
    }
    _check(case, deterministic=deterministic, **bounds)


def test_split_and_unsplit_agree() -> None:
    inputs = make_inputs(Case([Row(8, 700, "bidirectional"), Row(1, 900)], 4, 1, dtype=torch.float16))
    launch.INTERPRETER_SMS = 1
    whole = _run(inputs)
    for num_sms in (2, 5, 8):
        launch.INTERPRETER_SMS = num_sms
        assert relative_error(_run(inputs), whole) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_deterministic_rows_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    launch.MERGE_ROWS, plan.DETERMINISTIC_CHUNK_LEN = 16, 64
    rows = [Row(8, 100, "bidirectional"), Row(0, 5), Row(1, 63), Row(20, 130, "dual")]
    inputs = make_inputs(Case(rows, num_q_heads=4, num_kv_heads=1, dtype=dtype))
    together = _run(inputs, deterministic=True)
    begin = 0
    for row, length in enumerate(inputs.row_lens.tolist()):
        tokens = slice(begin, begin + length)
        begin += length
        if length == 0:
            continue
        one = slice(row, row + 1)
        alone = replace(
            inputs,
            q=inputs.q[tokens],
            row_lens=inputs.row_lens[one],
            kv_lens=inputs.kv_lens[one],
            kv_limit=inputs.kv_limit[tokens],
            slots=inputs.slots[one],
            max_row_len=length,
            max_kv_len=int(inputs.kv_lens[row]),
        )
        launch.INTERPRETER_SMS = 1 + row
        assert torch.equal(_run(alone, deterministic=True), together[tokens])


def _matmul_by_element(left: np.ndarray, right: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (left.astype(dtype)[:, None, :] * right.astype(dtype).T[None]).sum(-1)


def test_a_deterministic_token_is_the_same_in_a_block_and_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter multiplies with BLAS, which rounds a row differently at different places of a matrix. A GPU's
    # matrix instructions do not.
    monkeypatch.setattr(np, "matmul", _matmul_by_element)
    launch.MERGE_ROWS, plan.DETERMINISTIC_CHUNK_LEN = 16, 64
    inputs = make_inputs(Case([Row(20, 120)], num_q_heads=4, num_kv_heads=1, dtype=torch.float16))
    block = _run(inputs, deterministic=True)
    for token in (0, 7, 8, 19):
        alone = replace(
            inputs,
            q=inputs.q[token : token + 1],
            row_lens=torch.tensor([1], dtype=torch.int32),
            kv_lens=torch.tensor([121 + token], dtype=torch.int32),
            kv_limit=inputs.kv_limit[token : token + 1],
            max_row_len=1,
        )
        assert torch.equal(_run(alone, deterministic=True), block[token : token + 1])


def test_padding_rows_and_tokens_touch_no_memory() -> None:
    inputs = make_inputs(Case([Row(3, 40), Row(0, 0), Row(2, 9), Row(0, 7)], dtype=torch.float16, num_padding_tokens=4))
    # Indices that would fault, or find NaN, if anything followed them.
    slots = torch.where(inputs.row_lens > 0, inputs.slots, 1 << 40)
    kv_lens = torch.where(inputs.row_lens > 0, inputs.kv_lens, 1 << 30).int()
    got = _run(replace(inputs, slots=slots, kv_lens=kv_lens))
    assert relative_error(got, attend_in_float64(inputs)) <= MAX_RELATIVE_ERROR[torch.float16]


def test_only_padding() -> None:
    inputs = make_inputs(Case([Row(0, 0), Row(0, 3)], dtype=torch.float16, num_padding_tokens=6))
    assert (_run(inputs) == 0).all()


def test_only_the_first_entry_of_a_page_is_looked_up() -> None:
    inputs = make_inputs(Case([Row(4, 75)], page_size=16, dtype=torch.float16))
    table = torch.full_like(inputs.slot_table, -(1 << 20))
    table[:, ::16] = inputs.slot_table[:, ::16]
    assert torch.equal(_run(replace(inputs, slot_table=table)), _run(inputs))


@pytest.mark.parametrize("num_sms", [1, 2, 5, 17, 40])
def test_the_work_list_covers_every_unit_once(num_sms: int) -> None:
    launch.INTERPRETER_SMS = num_sms
    inputs = make_inputs(Case([*MIXED, Row(1, 1000), Row(16, 500)], dtype=torch.float16))
    forward = make_plan(*inputs.lengths, **inputs.bounds, use_kernel=True)
    assert isinstance(forward, plan.KernelPlan)
    work = launch.make_work_list(forward, plan.Geometry(8, 2, 64, 64, torch.float16, torch.float16))
    total, share, num_tiles, num_tokens = work.header.tolist()
    assert num_tokens == int(inputs.row_lens.sum())
    begins = work.program_begin.tolist()
    assert begins[0] == 0 and begins[-1] == total and begins == sorted(begins)
    longest = max(end - begin for begin, end in pairwise(begins))
    assert longest <= share + 2 * (share // launch.SNAP_DIVISOR)
    units, bases = work.tiles[:num_tiles, 5], work.tiles[:num_tiles, 6]
    assert int(units.sum()) * 2 == total
    assert bases.tolist() == [0, *(units * 2).cumsum(0).tolist()[:-1]]
    for begin, tile in zip(begins, work.program_tile.tolist(), strict=True):
        if begin < total:
            assert int(bases[tile]) <= begin < int(bases[tile] + units[tile] * 2)


def test_lengths_may_be_int64() -> None:
    inputs = make_inputs(Case(MIXED, dtype=torch.float16))
    wide = replace(
        inputs, row_lens=inputs.row_lens.long(), kv_lens=inputs.kv_lens.long(), kv_limit=inputs.kv_limit.long()
    )
    assert torch.equal(_run(wide), _run(inputs))
