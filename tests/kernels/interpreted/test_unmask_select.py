"""`unmask_select` and `unmask_block`: kernels against references and the loop, in Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from dlm_kernels.ops.unmask_select import launch, reference
from dlm_kernels.testing.unmask_block import Block, make_inputs, step_by_loop

SHAPES = [(1, 1, 1), (5, 7, 3), (3, 32, 4), (4, 63, 1), (2, 100, 2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_equals_the_reference_and_the_loop(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    num_rows, length, num_stops = shape
    rng = random.Random(length)
    for repeat in range(4):
        rows = [Block.drawn(length, num_stops, rng) for _ in range(num_rows)]
        inputs = make_inputs(rows, dtype)
        is_strict = repeat % 2 == 1
        got = launch.unmask_block(**inputs, is_strict=is_strict)
        expected = reference.unmask_block(**inputs, is_strict=is_strict)
        for name, value in got._asdict().items():
            assert torch.equal(value, getattr(expected, name)), name
        if dtype == torch.float64:
            for row, block in enumerate(rows):
                # 0.9 is not a float32: the threshold is compared in its own precision.
                assert [value[row].tolist() for value in got] == list(step_by_loop(block, is_strict))


def test_selection_alone_reads_strided_rows() -> None:
    rng = random.Random(0)
    inputs = make_inputs([Block.drawn(33, 1, rng) for _ in range(6)])
    confidence = torch.stack([inputs["confidence"]] * 2, dim=2)[:, :, 0]
    quota = torch.tensor([0, 1, 3, 40, 2, 2])
    fill_all = torch.tensor([False, False, False, False, True, False])
    for is_strict in (False, True):
        arguments = (inputs["is_masked"], confidence, inputs["confidence_threshold"], quota, fill_all)
        got = launch.unmask_select(*arguments, is_strict=is_strict)
        assert torch.equal(got, reference.unmask_select(*arguments, is_strict=is_strict))
