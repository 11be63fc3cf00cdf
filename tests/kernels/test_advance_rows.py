"""One round of rows on slot-indexed state, against a loop."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from dlm_kernels.ops.advance_rows import RowHints, RowState, advance_rows, cpu, reference
from dlm_kernels.ops.advance_rows.reference import AdvancedRows
from dlm_kernels.testing.advance_rows import advance_by_loop, copy_state, make_round, make_state
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


@pytest.mark.parametrize("advance_rows", [reference.advance_rows, cpu.advance_rows], ids=["reference", "cpu"])
@pytest.mark.parametrize("seed", range(60))
def test_advance_equals_a_loop(advance_rows: Callable[..., AdvancedRows], seed: int) -> None:
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


def _assert_same_round(state: RowState, inputs: dict[str, Tensor | None], hints: RowHints, *, is_strict: bool) -> None:
    """What runs on a CPU under `hints` against the reference, which takes none."""
    other = copy_state(state)
    got = cpu.advance_rows(state, **inputs, is_strict=is_strict, hints=hints)
    expected = reference.advance_rows(other, **inputs, is_strict=is_strict)
    # Past what counts, tokens are anybody's.
    is_emitted = torch.arange(got.token_ids.shape[1]) < got.accept_lens[:, None]
    assert torch.equal(got.token_ids[is_emitted], expected.token_ids[is_emitted])
    for name in ("accept_lens", "new_seq_lens", "is_denoise"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    for name in ("canvas", "is_masked", "progress"):
        assert torch.equal(getattr(state, name), getattr(other, name)), name


@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 7),
    width=st.integers(1, 12),
    num_stops=st.integers(0, 3),
    confidence=st.sampled_from(["float64", "float32", "bfloat16", "none", "nan"]),
    is_strict=st.booleans(),
)
def test_cpu_equals_the_reference(
    seed: int, num_rows: int, width: int, num_stops: int, confidence: str, is_strict: bool
) -> None:
    rng = random.Random(seed)
    state = make_state(num_rows + 2, width, max(num_stops, 1), rng)
    inputs: dict[str, Tensor | None] = {**make_round(num_rows, num_rows + 2, width, rng)}
    sure = inputs["confidence"]
    assert sure is not None
    if confidence == "none":
        inputs["confidence"] = None
    elif confidence == "nan":
        sure[rng.randrange(num_rows), rng.randrange(width)] = torch.nan
    else:
        inputs["confidence"] = sure.to(getattr(torch, confidence))
    if num_stops == 0:
        state.stop_ids.fill_(-1)
    _assert_same_round(state, inputs, RowHints(num_stop_ids=num_stops), is_strict=is_strict)


@pytest.mark.parametrize("seed", range(10))
def test_true_hints_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    state = make_state(9, 6, 2, rng)
    state.policy_ints[:, 2] = 0
    inputs: dict[str, Tensor | None] = {**make_round(7, 9, 6, rng)}
    _assert_same_round(state, inputs, RowHints(accepts_whole_blocks=False), is_strict=False)

    # Blocks of one seeded position: always their commit, whose token a request that goes on does not stop at.
    state = make_state(9, 1, 1, rng)
    state.stop_ids.fill_(-1)
    state.is_masked.fill_(False)
    state.progress[:, 0], state.progress[:, 1], state.progress[:, 2] = 1, 1, 0
    state.policy_ints[:, 0], state.policy_ints[:, 2], state.policy_ints[:, 3] = 1, 0, 1
    # At the context's end a request ends as well.
    inputs = {**make_round(7, 9, 1, rng), "confidence": None, "seq_lens": torch.full((7,), 5)}
    _assert_same_round(state, inputs, RowHints(is_autoregressive=True), is_strict=False)


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
