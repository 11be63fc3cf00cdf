"""Random request slots and a plain-Python oracle of one round."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from dlm_kernels.ops.advance_rows import RowState
from dlm_kernels.testing.unmask_block import Block, step_by_loop

MASK_TOKEN_ID, CONTEXT_LENGTH = 9, 1000
# What one row of a round is left with: emitted ids, tokens before the next block, canvas, masks, progress.
Outcome = tuple[list[int], int, list[int], list[bool], list[int]]


def make_state(num_slots: int, width: int, num_stops: int, rng: random.Random, device: str = "cpu") -> RowState:
    """Slots in the middle of their blocks, in every phase and with every kind of policy."""
    canvas, is_masked, progress, ints, floats, stop_ids = [], [], [], [], [], []
    for _ in range(num_slots):
        length = rng.randint(1, width)
        is_seeded, phase = rng.randint(0, 1), rng.randint(0, 1)
        block = Block.drawn(width, num_stops, rng)
        masks = [m and phase == 0 and is_seeded <= i < length for i, m in enumerate(block.is_masked)]
        canvas.append([rng.randint(0, 3) for _ in range(width)])
        is_masked.append(masks)
        progress.append([length, phase, block.step, rng.randint(-1, width + 3)])
        ints.append([rng.randint(1, width), block.max_denoising_steps, int(block.accepts_whole_block), is_seeded, 7])
        floats.append([math.nan if block.confidence_threshold is None else block.confidence_threshold, 0.0])
        stop_ids.append([rng.choice([-1, -1, 3, 5]) for _ in range(num_stops)])
    return RowState(
        torch.tensor(canvas, device=device),
        torch.tensor(is_masked, device=device),
        torch.tensor(progress, device=device),
        torch.tensor(ints, device=device),
        torch.tensor(floats, device=device),
        torch.tensor(stop_ids, device=device),
        MASK_TOKEN_ID,
        CONTEXT_LENGTH,
    )


def copy_state(state: RowState) -> RowState:
    """The same with tensors of its own where a round writes."""
    return replace(
        state, canvas=state.canvas.clone(), is_masked=state.is_masked.clone(), progress=state.progress.clone()
    )


def make_round(num_rows: int, num_slots: int, width: int, rng: random.Random) -> dict[str, Tensor]:
    """Slots, lengths, choices and confidences of one round; targets often equal drafts."""
    return {
        "slots": torch.tensor(rng.sample(range(num_slots), num_rows)),
        "seq_lens": torch.tensor([rng.choice([0, 5, 700, CONTEXT_LENGTH - width]) for _ in range(num_rows)]),
        "chosen": torch.tensor([rng.choices([0, 0, 0, 1, 2, 3, 5], k=width) for _ in range(num_rows)]),
        "confidence": torch.tensor(
            [rng.choices([0.1, 0.5, 0.75, 0.875, 1.0], k=width) for _ in range(num_rows)], dtype=torch.float64
        ),
    }


def advance_by_loop(state: RowState, slot: int, seq_len: int, chosen: list[int], confidence: list[float]) -> Outcome:
    """One round of one row, spelled out."""
    length, phase, step, remaining = state.progress[slot].tolist()
    block_length, max_steps, accepts_whole, is_seeded = state.policy_ints[slot, :4].tolist()
    threshold = float(state.policy_floats[slot, 0])
    width = len(chosen)
    stops = [token for token in state.stop_ids[slot].tolist() if token >= 0]
    block = Block(
        canvas=state.canvas[slot, :width].tolist(),
        is_masked=state.is_masked[slot, :width].tolist(),
        chosen=chosen,
        confidence=confidence,
        row_len=length,
        step=step,
        max_denoising_steps=max_steps,
        confidence_threshold=None if math.isnan(threshold) else threshold,
        is_seeded=bool(is_seeded),
        accepts_whole_block=bool(accepts_whole),
        stop_ids=stops,
        remaining=remaining,
        is_denoise=phase == 0,
    )
    canvas, masks, is_filled, ends_request = step_by_loop(block)
    emitted: list[int] = []
    seed = chosen[length - 1]
    if accepts_whole:
        if phase == 1:
            emitted = [*canvas[1:length], seed] if is_seeded else canvas[:length]
        elif ends_request:
            emitted = canvas[is_seeded:length]
    elif phase == 1:
        count = 0
        while count < length - 1 and canvas[count + 1] == chosen[count]:
            count += 1
        emitted, seed = chosen[: count + 1], chosen[count]
    cut = next((index + 1 for index, token in enumerate(emitted) if token in stops), len(emitted))
    emitted = emitted[: min(cut, max(remaining, 0))]
    seq_len += len(emitted)
    if phase == 0:
        return emitted, seq_len, canvas, masks, [length, int(is_filled), step + 1, remaining - len(emitted)]
    new_length = min(block_length, CONTEXT_LENGTH - seq_len)
    fresh = [seed if index < is_seeded else MASK_TOKEN_ID for index in range(width)]
    fresh_masks = [is_seeded <= index < new_length for index in range(width)]
    progress = [new_length, int(new_length <= is_seeded), 0, remaining - len(emitted)]
    return emitted, seq_len, fresh, fresh_masks, progress
