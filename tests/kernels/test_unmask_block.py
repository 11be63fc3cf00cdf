"""A denoising step on whole blocks, against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from dlm_kernels.ops.unmask_select import unmask_block, unmask_select
from dlm_kernels.testing.unmask_block import Block, make_inputs, step_by_loop
from hypothesis import given
from hypothesis import strategies as st


def blocks(length: int) -> st.SearchStrategy[Block]:
    def positions(values: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
        return st.lists(values, min_size=length, max_size=length)

    return st.builds(
        Block,
        canvas=positions(st.integers(0, 5)),
        is_masked=positions(st.booleans()),
        chosen=positions(st.integers(0, 5)),
        confidence=positions(st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0, math.nan])),
        row_len=st.integers(1, length),
        step=st.integers(0, 5),
        max_denoising_steps=st.integers(1, 6),
        confidence_threshold=st.sampled_from([None, 0.05, 0.5, 0.75, 1.0]),
        is_seeded=st.booleans(),
        accepts_whole_block=st.booleans(),
        stop_ids=st.lists(st.integers(-1, 5), min_size=3, max_size=3),
        remaining=st.integers(0, length + 2),
        is_denoise=st.booleans(),
    )


@given(st.integers(1, 9).flatmap(lambda length: st.lists(blocks(length), min_size=1, max_size=5)), st.booleans())
def test_reference_equals_a_loop(rows: list[Block], is_strict: bool) -> None:
    after = unmask_block(**make_inputs(rows), is_strict=is_strict)
    for row, block in enumerate(rows):
        assert [value[row].tolist() for value in after] == list(step_by_loop(block, is_strict))


def test_a_narrow_confidence_is_compared_in_its_own_precision() -> None:
    """0.9 in bfloat16 is less than 0.9, and a confidence that equals it passes, as in published code."""
    confidence = torch.tensor([[0.8984375, 0.95]], dtype=torch.bfloat16)
    arguments = (torch.tensor([0.9]), torch.tensor([0]), torch.tensor([False]))
    is_masked = torch.ones(1, 2, dtype=torch.bool)
    assert unmask_select(is_masked, confidence, *arguments).tolist() == [[True, True]]
    assert unmask_select(is_masked, confidence, *arguments, is_strict=True).tolist() == [[False, True]]
    assert unmask_select(is_masked, confidence.double(), *arguments).tolist() == [[False, True]]


def test_shapes_that_do_not_agree_are_refused() -> None:
    inputs = make_inputs([Block.empty(4)])
    with pytest.raises(ValueError, match="chosen must be"):
        unmask_block(**{**inputs, "chosen": torch.zeros(1, 3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="step must be"):
        unmask_block(**{**inputs, "step": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ValueError, match="stop_ids must be"):
        unmask_block(**{**inputs, "stop_ids": torch.zeros(2, 1, dtype=torch.int64)})
