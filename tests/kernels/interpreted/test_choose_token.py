"""`choose_token`'s kernels against float64, the reference and its CDF, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from dlm_kernels.ops.choose_token import SamplingRows, launch, reference
from dlm_kernels.ops.sample_token import filtered_probs
from dlm_kernels.ops.sample_token import launch as sample_launch
from dlm_kernels.ops.sample_token import reference as sample_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

# Infinities on purpose; NumPy has an opinion on them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 7), (5, 63), (3, 1000), (2, 4097)]
# Small tiles: a case then has several splits, tiles and lanes.
TILING = {"split_length": 1024, "groups": 64, "block_v": 512}
# How far a uniform number may lie from a boundary of the CDF and still fall on the other side of it.
CDF_TOLERANCE = 2e-6


def _logits(num_rows: int, vocab_size: int, dtype: torch.dtype, scale: float = 4.0) -> Tensor:
    """Random logits inside a larger tensor of large numbers, so that a column too many shows."""
    generator = torch.Generator().manual_seed(num_rows * vocab_size)
    wide = torch.full((num_rows, vocab_size + 5), 3e4, dtype=dtype)
    wide[:, :vocab_size] = torch.randn(num_rows, vocab_size, generator=generator).to(dtype) * scale
    return wide[:, :vocab_size]


def _expected(logits: Tensor, excluded: int, counts_excluded: bool = True) -> tuple[Tensor, Tensor]:
    exact = logits.double()
    allowed = exact.clone()
    if excluded >= 0:
        allowed[:, excluded] = -torch.inf
    token_ids = allowed.argmax(dim=-1)
    probs = torch.softmax(exact if counts_excluded else allowed, dim=-1)
    return token_ids, probs.gather(1, token_ids[:, None])[:, 0]


def _check_greedy(logits: Tensor, excluded: int, **options: bool) -> None:
    token_ids, confidence = launch.choose_token(logits, excluded_token_id=excluded, **options, **TILING)
    expected_ids, expected = _expected(logits, excluded, **options)
    assert torch.equal(token_ids, expected_ids)
    # The interpreter rounds the product inside a multiply-add, which a GPU does not.
    rtol = 1e-6 + 1.5e-7 * float(logits.abs().max())
    torch.testing.assert_close(confidence, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    vocab_size = shape[1]
    logits = _logits(*shape, dtype)
    for excluded in {-1, 0, vocab_size // 2, vocab_size - 1} if vocab_size > 1 else {-1}:
        _check_greedy(logits, excluded, counts_excluded=excluded % 2 == 0)


@settings(max_examples=12)
@given(
    num_rows=st.integers(1, 3),
    vocab_size=st.integers(2, 2600),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_greedy_rows_of_any_shape(
    num_rows: int, vocab_size: int, dtype: torch.dtype, scale: float, place: float
) -> None:
    _check_greedy(_logits(num_rows, vocab_size, dtype, scale), int(place * vocab_size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lowest_of_equals_wins_across_lanes_tiles_and_splits(dtype: torch.dtype) -> None:
    ties = [[3999, 5], [2050, 1030, 1024], [700, 260, 3], [513, 511], [1023, 1024], [4000, 9, 8], list(range(4097))]
    logits = _logits(len(ties), 4097, dtype)
    for row, ids in enumerate(ties):
        logits[row, ids] = 50.0
    for excluded in (-1, 1024):
        _check_greedy(logits, excluded)


def test_empty_splits_and_extreme_logits() -> None:
    logits = _logits(9, 4097, torch.float32)
    logits[0, :3000] = -torch.inf
    logits[1, 1000:] = -torch.inf
    logits[2, :] = -torch.inf
    logits[2, 2500] = -5.0
    logits[3] *= 2000.0
    logits[4] = torch.finfo(torch.float32).min
    logits[5, :] = -torch.inf
    logits[6] -= 100.0
    logits[7, 77] = torch.nan
    logits[8, 100] = 90.0  # the excluded id holds nearly all the mass
    token_ids, confidence = launch.choose_token(logits, excluded_token_id=100, **TILING)
    good = [0, 1, 2, 3, 6, 8]
    expected_ids, expected = _expected(logits, 100)
    assert torch.equal(token_ids[good], expected_ids[good])
    torch.testing.assert_close(confidence[good], expected[good], rtol=1e-5, atol=0)
    assert token_ids[[4, 5]].tolist() == [0, 0]
    assert confidence[[4, 5]].tolist() == [0.0, 0.0]
    assert 0 <= token_ids[7] < 4097
    assert confidence[7].isnan()


def test_confidence_near_one_keeps_its_order() -> None:
    logits = torch.zeros(20, 300)
    logits[torch.arange(20), torch.arange(20) * 7] = torch.linspace(20, 33, 20)
    _, confidence = launch.choose_token(logits, excluded_token_id=4, **TILING)
    odds = torch.exp(logits.double() - logits.double().amax(1, keepdim=True)).sum(1) - 1.0
    torch.testing.assert_close(1.0 / confidence - 1.0, odds, rtol=1e-5, atol=4e-15)
    assert (confidence.diff() > 0).all()


def test_settled_rows_flags_and_dtypes() -> None:
    logits = _logits(6, 700, torch.bfloat16)
    is_settled = torch.tensor([True, False, True, False, False, True])
    wants = torch.tensor([True, True, True, False, False, True])
    for dtype in (torch.float64, torch.float32):
        arguments = {"excluded_token_id": 9, "is_settled": is_settled, "confidence_dtype": dtype}
        for needs_confidence in (wants, True, False):
            got = launch.choose_token(logits, **arguments, needs_confidence=needs_confidence, **TILING)
            expected = reference.choose_token(logits, **arguments, needs_confidence=needs_confidence)
            assert torch.equal(got[0], expected[0])
            torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0)


def _check_draws(logits: Tensor, sampling: SamplingRows, excluded: int) -> None:
    token_ids, confidence = launch.choose_token(logits, excluded_token_id=excluded, sampling=sampling, **TILING)
    expected_ids, _ = reference.choose_token(logits, excluded_token_id=excluded, sampling=sampling)
    for row in (token_ids != expected_ids).nonzero().squeeze(1):
        chosen = sampling.select(row[None])
        assert chosen.temperature > 0
        probs = filtered_probs(
            logits[row][None], chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p, excluded
        )[0]
        end = float(probs.cumsum(0)[token_ids[row]])
        begin = end - float(probs[token_ids[row]])
        assert begin - CDF_TOLERANCE <= float(chosen.uniform) <= end + CDF_TOLERANCE
    probability = torch.softmax(logits.double(), -1).gather(1, token_ids[:, None])[:, 0]
    torch.testing.assert_close(confidence, probability, rtol=3e-6, atol=0)


def _sampling(num_rows: int, seed: int, *, filtered: bool) -> SamplingRows:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_rows,), generator=generator)]

    return SamplingRows(
        temperature=pick(0.0, 0.1, 0.7, 1.0, 2.0),
        top_k=pick(-1, 0, 1, 2, 5, 50) if filtered else pick(-1),
        top_p=pick(1.0, 0.99, 0.9, 0.5, 0.05) if filtered else pick(1.0),
        min_p=pick(0.0, 0.0, 0.1, 0.9) if filtered else pick(0.0),
        uniform=torch.rand(num_rows, dtype=torch.float64, generator=generator),
    )


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_equal_the_reference_except_at_edges_of_the_cdf(dtype: torch.dtype, filtered: bool) -> None:
    for seed, (num_rows, vocab_size) in enumerate([(1, 1), (5, 7), (3, 63), (3, 1000), (2, 4097)]):
        logits = _logits(num_rows, vocab_size, dtype, 2.0)
        sampling = _sampling(num_rows, seed, filtered=filtered)
        _check_draws(logits, sampling, vocab_size // 2 if vocab_size > 1 else -1)


def test_filters_cut_between_equals_by_id() -> None:
    logits = torch.zeros(8, 600)
    logits[:, 300:310] = 1.0
    logits[4:, 599] = 2.0
    sampling = SamplingRows(
        temperature=torch.full((8,), 0.5),
        top_k=torch.tensor([3, 12, -1, -1, 4, 12, -1, 20]),
        top_p=torch.tensor([1.0, 1.0, 0.02, 0.3, 1.0, 0.5, 0.2, 0.9]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0]),
        uniform=torch.linspace(0.0, 0.999, 8, dtype=torch.float64),
    )
    _check_draws(logits, sampling, 0)


def test_draws_where_much_is_impossible() -> None:
    logits = _logits(5, 4097, torch.float32)
    logits[0, :4000] = -torch.inf
    logits[1, 1:] = -torch.inf
    logits[2, :] = -torch.inf
    logits[3, 100:4000] = -torch.inf
    logits[4, ::2] = -torch.inf
    edges = torch.tensor([0.0, 0.5, 0.5, 1.0 - 2.0**-24, 1.0 - 2.0**-24], dtype=torch.float64)
    ones = torch.ones(5)
    top_p = torch.tensor([1.0, 0.9, 0.9, 1.0, 0.999])
    sampling = SamplingRows(ones, torch.full((5,), -1), top_p, ones * 0, edges)
    token_ids, confidence = launch.choose_token(logits, excluded_token_id=50, sampling=sampling, **TILING)
    expected_ids, expected = reference.choose_token(logits, excluded_token_id=50, sampling=sampling)
    assert torch.equal(token_ids, expected_ids)
    torch.testing.assert_close(confidence, expected, rtol=1e-5, atol=0)


def test_random_numbers_are_the_references_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    seed = torch.randint(-(2**62), 2**62, (700,), generator=generator)
    position = torch.randint(0, 2**20, (700,), generator=generator)
    step = torch.randint(0, 64, (700,), generator=generator)
    got = sample_launch.uniform_from_seed(seed, position, step)
    assert torch.equal(got, sample_reference.uniform_from_seed(seed, position, step))
