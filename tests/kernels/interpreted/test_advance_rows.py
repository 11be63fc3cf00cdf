"""`advance_rows`: the kernel against the reference, in Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from dlm_kernels.ops.advance_rows import launch, reference
from dlm_kernels.testing.advance_rows import copy_state, make_round, make_state
from torch import Tensor


def _assert_same(seed: int, num_rows: int, width: int, cut: int, **options: bool) -> None:
    """One round by both, on canvases that are `cut` wider than the round."""
    rng = random.Random(seed)
    state = make_state(num_rows + 2, width + cut, 3, rng)
    state.is_masked[:, width:] = False
    state.progress[:, 0].clamp_(max=width)
    state.policy_ints[:, 0].clamp_(max=width)
    inputs: dict[str, Tensor | None] = {**make_round(num_rows, num_rows + 2, width, rng)}
    if seed % 3 == 2:
        inputs["confidence"] = None
    elif seed % 3 == 1:
        inputs["confidence"] = inputs["confidence"].bfloat16()
    other = copy_state(state)
    got = launch.advance_rows(state, **inputs, **options)
    expected = reference.advance_rows(other, **inputs, **options)
    for name, value in got._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name
    for name in ("canvas", "is_masked", "progress"):
        assert torch.equal(getattr(state, name), getattr(other, name)), name


@pytest.mark.parametrize("shape", [(1, 1), (6, 7), (5, 32), (3, 63), (2, 70)])
def test_a_round_equals_the_reference(shape: tuple[int, int]) -> None:
    for seed in range(6):
        _assert_same(seed, *shape, cut=seed % 2 * 3, is_strict=seed % 4 == 3)
