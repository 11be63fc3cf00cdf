"""Training batches: the block-diffusion mask, the targets, the noise."""

from __future__ import annotations

import random

import pytest
import torch

from dlm_sglang.bundled.batches import Batch, Example, NoiseRecipe, block_starts, build
from dlm_sglang.bundled.drafter import wrong_drafts_before
from dlm_sglang.bundled.tokenizer import EOS_ID, MASK_ID

EXAMPLES = [Example([201, 202, 203], [301, 302, 303, 304, EOS_ID]), Example([201, 202], [311, 312, EOS_ID])]


@pytest.fixture(params=range(8))
def batch(request: pytest.FixtureRequest) -> Batch:
    return build(EXAMPLES, random.Random(request.param))


def test_block_starts_cut_the_first_block_only() -> None:
    assert block_starts(7, 4, 3).tolist() == [0, 0, 0, 3, 3, 3, 3]
    assert block_starts(8, 4, 4).tolist() == [0, 0, 0, 0, 4, 4, 4, 4]


def test_mask_is_causal_on_clean_rows_and_block_wise_on_noisy_ones(batch: Batch) -> None:
    rows, width = batch.input_ids.shape
    for row in range(rows):
        positions, blocks, clean = batch.positions[row].tolist(), batch.block_ids.tolist(), batch.clean_len
        for query in range(width):
            first_of_block = min(p for p, b in zip(positions, blocks, strict=True) if b == blocks[query])
            for key in range(width):
                if query < clean:
                    expected = key < clean and positions[key] <= positions[query]
                elif key < clean:
                    expected = positions[key] < first_of_block
                else:
                    expected = blocks[key] == blocks[query]
                assert batch.attn_mask[row, query, key].item() == expected


def test_causal_targets_are_the_answers_shifted(batch: Batch) -> None:
    width = batch.input_ids.shape[1]
    for row, example in enumerate(EXAMPLES):
        here = batch.ar_rows // width == row
        assert batch.ar_targets[here].tolist() == example.answer_ids
        first = len(example.prompt_ids) - 1
        assert (batch.ar_rows[here] % width).tolist() == list(range(first, first + len(example.answer_ids)))


def test_masked_rows_predict_their_own_token_and_eos_behind_the_answer(batch: Batch) -> None:
    width = batch.input_ids.shape[1]
    for flat, target in zip(batch.diffusion_rows.tolist(), batch.diffusion_targets.tolist(), strict=True):
        row, column = divmod(flat, width)
        slot = int(batch.positions[row, column]) - len(EXAMPLES[row].prompt_ids)
        answer = EXAMPLES[row].answer_ids
        assert batch.input_ids[row, column] == MASK_ID
        assert target == (answer[slot] if slot < len(answer) else EOS_ID)


def test_prompts_are_never_masked_and_clean_halves_hold_no_mask(batch: Batch) -> None:
    assert not (batch.input_ids[:, : batch.clean_len] == MASK_ID).any()
    prompt_lens = torch.tensor([len(example.prompt_ids) for example in EXAMPLES])
    assert (batch.positions[:, batch.clean_len :] >= prompt_lens[:, None]).all()


def test_draft_noise_masks_everything_but_the_seeds() -> None:
    recipe = NoiseRecipe(block_lengths=(4,), block_weights=(1,), seeded_share=1.0, fully_masked_share=1.0)
    batch = build(EXAMPLES, random.Random(0), recipe)
    for block in range(int(batch.block_ids.max()) + 1):
        ids = batch.input_ids[:, batch.block_ids == block]
        assert (ids[:, 0] != MASK_ID).all()
        assert (ids[:, 1:] == MASK_ID).all()


def test_wrong_drafts_are_counted_inside_their_block() -> None:
    is_wrong = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    block_ids = torch.tensor([0, 0, 0, 1, 1, 1])
    assert wrong_drafts_before(is_wrong, block_ids).tolist() == [[0, 0, 1, 0, 1, 1]]
