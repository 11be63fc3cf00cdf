"""One round of rows on slot-indexed state, against a loop."""

from __future__ import annotations

import random

import pytest
import torch
from dlm_kernels.ops.advance_rows import advance_rows
from dlm_kernels.testing.advance_rows import advance_by_loop, copy_state, make_round, make_state


@pytest.mark.parametrize("seed", range(60))
def test_reference_equals_a_loop(seed: int) -> None:
    rng = random.Random(seed)
    width, num_slots = rng.randint(1, 9), 8
    state = make_state(num_slots, width, 2, rng)
    inputs = make_round(5, num_slots, width, rng)
    before = copy_state(state)
    advanced = advance_rows(state, **inputs)
    for row, slot in enumerate(inputs["slots"].tolist()):
        arguments = (slot, int(inputs["seq_lens"][row]), inputs["chosen"][row].tolist())
        expected = advance_by_loop(before, *arguments, inputs["confidence"][row].tolist())
        count = int(advanced.accept_lens[row])
        assert advanced.token_ids[row, :count].tolist() == expected[0]
        assert int(advanced.new_seq_lens[row]) == expected[1]
        assert state.canvas[slot].tolist() == expected[2]
        assert state.is_masked[slot].tolist() == expected[3]
        assert state.progress[slot].tolist() == expected[4]
        assert bool(advanced.is_denoise[row]) == (int(before.progress[slot, 1]) == 0)
    others = [slot for slot in range(num_slots) if slot not in inputs["slots"].tolist()]
    for name in ("canvas", "is_masked", "progress"):
        assert torch.equal(getattr(state, name)[others], getattr(before, name)[others])


def test_without_confidence_every_mask_is_filled() -> None:
    rng = random.Random(0)
    state = make_state(6, 8, 2, rng)
    inputs = make_round(6, 6, 8, rng)
    is_denoise = state.progress[:, 1] == 0
    advance_rows(state, inputs["slots"], inputs["seq_lens"], inputs["chosen"], None)
    assert not state.is_masked[is_denoise].any()


def test_shapes_that_do_not_agree_are_refused() -> None:
    rng = random.Random(0)
    state, inputs = make_state(4, 6, 1, rng), make_round(3, 4, 6, rng)
    with pytest.raises(ValueError, match=r"L in 1\.\.6"):
        advance_rows(state, **{**inputs, "chosen": torch.zeros(3, 7, dtype=torch.int64)})
    with pytest.raises(ValueError, match="slots and seq_lens"):
        advance_rows(state, **{**inputs, "slots": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ValueError, match="confidence must be"):
        advance_rows(state, **{**inputs, "confidence": torch.zeros(3, 5)})
