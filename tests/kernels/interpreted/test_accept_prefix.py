"""Acceptance: kernels against references, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from dlm_kernels.ops.accept_prefix import launch, reference
from dlm_kernels.testing.accept_rejection import make_case

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 31), (4, 63), (2, 0)])
def test_equal_prefixes(shape: tuple[int, int]) -> None:
    num_rows, length = shape
    generator = torch.Generator().manual_seed(length)
    # Columns of a wider tensor: the rows do not lie side by side.
    drafts = torch.randint(0, 2, (num_rows, length + 3), generator=generator)[:, 1 : length + 1]
    targets = torch.randint(0, 2, (num_rows, length + 1), generator=generator)
    targets[0, :-1] = drafts[0]
    for num_drafts in (
        torch.full((num_rows,), length),
        torch.zeros(num_rows, dtype=torch.int64),
        torch.randint(0, length + 1, (num_rows,), generator=generator),
    ):
        got = launch.accept_prefix(drafts, targets, num_drafts)
        expected = reference.accept_prefix(drafts, targets, num_drafts)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rejection(dtype: torch.dtype, one_hot: bool) -> None:
    for seed, (length, vocab_size) in enumerate([(0, 7), (1, 63), (3, 600)]):
        case = make_case(num_rows=2, length=length, vocab_size=vocab_size, one_hot=one_hot, seed=seed, dtype=dtype)
        got = launch.accept_rejection(**case.arguments(3), groups=32, block_v=512)
        expected = reference.accept_rejection(**case.arguments(3))
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
