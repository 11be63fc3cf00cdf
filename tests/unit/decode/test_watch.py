"""Which rows are watched, and what is told of their blocks."""

from __future__ import annotations

import torch

from dlm_sglang.decode.state import BlockState
from dlm_sglang.decode.watch import make_watch, provisional_block
from tests.unit.decode.policies import policies_of

DIFFUSION, UNSEEDED, DRAFT = policies_of(
    [
        {"generation_mode": "diffusion", "block_length": 4},
        {"generation_mode": "diffusion", "block_length": 4, "seeded_blocks": False},
        {"generation_mode": "self_speculation", "block_length": 4},
    ],
    0.0,
    top_p=1.0,
    max_new_tokens=20,
)


def test_a_batch_that_nobody_watches_has_no_watch() -> None:
    assert make_watch([False, False], "cpu") is None
    assert make_watch([], "cpu") is None


def test_a_look_takes_the_watched_rows_and_later_rounds_do_not_change_it() -> None:
    state = BlockState(8, 6, mask_token_id=40, context_length=64)
    slots = torch.tensor([5, 2, 7])
    state.admit(slots, [DIFFUSION, DRAFT, UNSEEDED], [1, 1, 0], torch.tensor([9, 8, 7]), [10, 10, 10])
    watch = make_watch([True, False, True], "cpu")
    assert watch is not None
    assert watch.rows == (0, 2)
    looked = watch.look(state, slots)
    state.canvas.fill_(3)
    state.is_masked.fill_(False)
    # Behind the block the canvas is nobody's: it is cut by the length.
    assert [row[:4] for row in looked.tolist()] == [[9, -1, -1, -1], [-1, -1, -1, -1]]
    assert [row[6:] for row in looked.tolist()] == [[4, 0], [4, 0]]


def test_the_mask_token_in_a_block_is_told_as_the_token_that_it_is() -> None:
    """A prompt may hold the mask's id, and a model without our mask rule could seed a block with it."""
    state = BlockState(2, 4, mask_token_id=40, context_length=64)
    slots = torch.tensor([1])
    state.admit(slots, [DIFFUSION], [1], torch.tensor([40]), [10])
    watch = make_watch([True], "cpu")
    assert watch is not None
    (values,) = watch.look(state, slots).tolist()
    assert provisional_block(values, DIFFUSION, 1)["token_ids"] == [40, None, None, None]


def test_positions_count_the_answer_and_a_seeded_block_begins_with_its_last_token() -> None:
    values = [9, -1, 6, -1, 40, 40, 3, 2]
    seeded, unseeded = (provisional_block(values, policy, 12) for policy in (DIFFUSION, UNSEEDED))
    assert (seeded["positions"], unseeded["positions"]) == ([11, 12, 13], [12, 13, 14])
    assert seeded["token_ids"] == unseeded["token_ids"] == [9, None, 6]
    assert seeded["step"] == 2


def test_diffusion_keeps_what_it_filled_and_a_draft_only_its_seed() -> None:
    values = [9, 5, -1, 6, 4, 1]
    assert provisional_block(values, DIFFUSION, 1)["is_final"] == [True, True, False, True]
    assert provisional_block(values, UNSEEDED, 0)["is_final"] == [True, True, False, True]
    assert provisional_block(values, DRAFT, 1)["is_final"] == [True, False, False, False]
