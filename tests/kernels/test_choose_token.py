"""The choice of tokens with confidence: the reference against plain Python and torch, and what it says of odd rows."""

from __future__ import annotations

import math

import pytest
import torch
from dlm_kernels.ops.choose_token import SamplingRows, choose_token, cpu, reference
from dlm_kernels.ops.sample_token import sample_token
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _loop(row: list[float], excluded: int, counts_excluded: bool) -> tuple[int, float]:
    allowed = [index for index in range(len(row)) if index != excluded]
    token = max(allowed, key=lambda index: (row[index], -index))
    counted = range(len(row)) if counts_excluded else allowed
    return token, math.exp(row[token]) / math.fsum(math.exp(row[index]) for index in counted)


@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(0, 5),
    vocab_size=st.sampled_from([2, 7, 63, 1000]),
    dtype=st.sampled_from(DTYPES),
    counts_excluded=st.booleans(),
)
def test_choice_equals_a_loop(
    seed: int, num_rows: int, vocab_size: int, dtype: torch.dtype, counts_excluded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_rows, vocab_size + 3, generator=generator) * 3).round(decimals=1).to(dtype)[:, 2:-1]
    excluded = seed % (vocab_size + 1) - 1
    before = logits.clone()
    token_ids, confidence = choose_token(logits, excluded_token_id=excluded, counts_excluded=counts_excluded)
    assert torch.equal(logits, before)
    for row, token, sure in zip(logits.double().tolist(), token_ids.tolist(), confidence.tolist(), strict=True):
        expected, probability = _loop(row, excluded, counts_excluded)
        assert token == expected
        assert sure == pytest.approx(probability, rel=1e-6)


@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(0, 9),
    vocab_size=st.sampled_from([1, 2, 7, 300]),
    scale=st.sampled_from([0.5, 30.0, 1e4]),
    counts_excluded=st.booleans(),
    how=st.sampled_from(["greedy", "sampled", "settled", "by row"]),
)
def test_cpu_equals_the_reference(
    seed: int, num_rows: int, vocab_size: int, scale: float, counts_excluded: bool, how: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_rows, vocab_size + 2, generator=generator) * scale)[:, 1:-1]
    logits[torch.rand(logits.shape, generator=generator) < 0.2] = -torch.inf
    flags = torch.rand(num_rows, generator=generator) < 0.5
    arguments = {
        "excluded_token_id": seed % (vocab_size + 1) - 1,
        "counts_excluded": counts_excluded,
        "sampling": _sampling(num_rows, generator) if how == "sampled" else None,
        "is_settled": flags if how in ("settled", "sampled") else None,
        "needs_confidence": flags if how == "by row" else True,
    }
    before = logits.clone()
    token_ids, confidence = cpu.choose_token(logits, **arguments)
    assert torch.equal(logits, before)
    expected_ids, expected = reference.choose_token(logits, **arguments)
    assert torch.equal(token_ids, expected_ids)
    torch.testing.assert_close(confidence, expected, rtol=1e-6, atol=0)


def _sampling(num_rows: int, generator: torch.Generator) -> SamplingRows:
    def pick(values: list[float]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_rows,), generator=generator)]

    uniform = torch.rand(num_rows, dtype=torch.float64, generator=generator)
    return SamplingRows(pick([0.0, 0.7, 1.5]), pick([-1, 1, 3, 99]), pick([1.0, 0.9, 0.3]), pick([0.0, 0.2]), uniform)


@pytest.mark.parametrize("seed", range(6))
def test_rows_with_a_temperature_are_sampled_and_the_others_are_not(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 50, generator=generator) * 3
    sampling = _sampling(40, generator)
    token_ids, confidence = choose_token(logits, excluded_token_id=9, sampling=sampling)
    greedy, _ = choose_token(logits, excluded_token_id=9, needs_confidence=False)
    hot = sampling.temperature > 0
    rows = sampling.select(hot.nonzero().squeeze(1))
    drawn = sample_token(
        logits[hot], rows.uniform, rows.temperature, rows.top_k, rows.top_p, rows.min_p, excluded_token_id=9
    )
    assert torch.equal(token_ids, greedy.masked_scatter(hot, drawn))
    expected = torch.softmax(logits.double(), dim=-1).gather(1, token_ids[:, None])[:, 0]
    torch.testing.assert_close(confidence, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_settled", [0, 3, 20, 40])
def test_settled_rows_give_nothing_and_disturb_nobody(num_settled: int) -> None:
    generator = torch.Generator().manual_seed(num_settled)
    logits = torch.randn(40, 50, generator=generator)
    sampling = _sampling(40, generator)
    is_settled = torch.randperm(40, generator=generator) < num_settled
    wants = torch.rand(40, generator=generator) < 0.5
    alone = choose_token(logits, excluded_token_id=9, sampling=sampling)
    logits[is_settled] = torch.nan
    token_ids, confidence = choose_token(
        logits, excluded_token_id=9, sampling=sampling, is_settled=is_settled, needs_confidence=wants
    )
    assert torch.equal(token_ids, alone[0].masked_fill(is_settled, 0))
    assert torch.equal(confidence, alone[1].masked_fill(is_settled | ~wants, 0.0))


def test_confidence_near_one_keeps_its_order() -> None:
    logits = torch.zeros(40, 13)
    logits[:, 2] = torch.linspace(20, 30, 40)
    _, confidence = choose_token(logits, excluded_token_id=4)
    assert (confidence.diff() > 0).all()
    torch.testing.assert_close(confidence, torch.softmax(logits.double(), -1)[:, 2], rtol=1e-9, atol=0)


def test_bfloat16_confidence_is_that_of_a_softmax_in_bfloat16() -> None:
    logits = (torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    token_ids, confidence = choose_token(logits, excluded_token_id=-1, confidence_dtype=torch.bfloat16)
    expected = torch.softmax(logits, dim=-1).gather(1, token_ids[:, None])[:, 0]
    assert confidence.dtype == torch.bfloat16
    assert torch.equal(confidence, expected)


def test_rows_without_a_choice() -> None:
    infinity = float("inf")
    logits = torch.tensor([[-infinity] * 4, [2.0] + [-infinity] * 3, [torch.nan, 1.0, 2.0, 0.0]])
    sampling = SamplingRows(
        torch.ones(3), torch.full((3,), -1), torch.ones(3), torch.zeros(3), torch.full((3,), 0.5, dtype=torch.float64)
    )
    for how in (None, sampling):
        token_ids, confidence = choose_token(logits, excluded_token_id=0, sampling=how)
        assert token_ids[:2].tolist() == [1, 1]
        assert confidence[:2].tolist() == [0.0, 0.0]
        assert 0 <= token_ids[2] < 4
        assert confidence[2].isnan()
    assert choose_token(torch.zeros(2, 1), excluded_token_id=0)[1].tolist() == [0.0, 0.0]


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, 8)
    with pytest.raises(ValueError, match=r"\[N, V >= 1\]"):
        choose_token(logits[0], excluded_token_id=0)
    with pytest.raises(ValueError, match="side by side"):
        choose_token(logits.T, excluded_token_id=0)
    with pytest.raises(ValueError, match=r"-1\.\.7, got 8"):
        choose_token(logits, excluded_token_id=8)
    with pytest.raises(ValueError, match="is_settled must be"):
        choose_token(logits, excluded_token_id=0, is_settled=torch.zeros(2, dtype=torch.bool))
