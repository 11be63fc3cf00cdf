"""Inputs and a plain-Python oracle of a denoising step on whole blocks."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor


class Inputs(TypedDict):
    """Arguments of `unmask_block`."""

    canvas: Tensor
    is_masked: Tensor
    chosen: Tensor
    confidence: Tensor
    row_lens: Tensor
    step: Tensor
    max_denoising_steps: Tensor
    confidence_threshold: Tensor
    is_seeded: Tensor
    accepts_whole_block: Tensor
    stop_ids: Tensor
    remaining: Tensor
    is_denoise: Tensor


@dataclass(frozen=True)
class Block:
    """One request's block before a step. The lists have L entries; a threshold of None is the even schedule."""

    canvas: list[int]
    is_masked: list[bool]
    chosen: list[int]
    confidence: list[float]
    row_len: int
    step: int
    max_denoising_steps: int
    confidence_threshold: float | None
    is_seeded: bool
    accepts_whole_block: bool
    stop_ids: list[int]
    remaining: int
    is_denoise: bool

    @classmethod
    def empty(cls, length: int) -> Block:
        """A block without a mask."""
        zeros = [0] * length
        return cls(zeros, [False] * length, zeros, [0.0] * length, length, 0, 1, None, False, True, [-1], 9, True)

    @classmethod
    def drawn(cls, length: int, num_stops: int, rng: random.Random) -> Block:
        """A random block in which ties, stop tokens and every flag are frequent."""
        return cls(
            canvas=rng.choices(range(9), k=length),
            is_masked=rng.choices([True, True, False], k=length),
            chosen=rng.choices(range(9), k=length),
            confidence=rng.choices([0.0, 0.25, 0.5, 0.75, 0.875, 1.0, math.nan], k=length),
            row_len=rng.randint(1, length),
            step=rng.randint(0, 4),
            max_denoising_steps=rng.randint(1, 6),
            confidence_threshold=rng.choice([None, 0.5, 0.75, 0.9]),
            is_seeded=rng.random() < 0.5,
            accepts_whole_block=rng.random() < 0.6,
            stop_ids=[rng.choice([-1, 3, 8]) for _ in range(num_stops)],
            remaining=rng.randint(0, length + 2),
            is_denoise=rng.random() < 0.85,
        )


def make_inputs(rows: list[Block], confidence_dtype: torch.dtype = torch.float64, device: str = "cpu") -> Inputs:
    """Arguments of `unmask_block` for rows of equal length."""

    def column(values: list[object], dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    thresholds = [math.nan if row.confidence_threshold is None else row.confidence_threshold for row in rows]
    return {
        "canvas": column([row.canvas for row in rows]),
        "is_masked": column([row.is_masked for row in rows]),
        "chosen": column([row.chosen for row in rows]),
        "confidence": column([row.confidence for row in rows], dtype=confidence_dtype),
        "row_lens": column([row.row_len for row in rows]),
        "step": column([row.step for row in rows]),
        "max_denoising_steps": column([row.max_denoising_steps for row in rows]),
        "confidence_threshold": column([*thresholds]),
        "is_seeded": column([row.is_seeded for row in rows]),
        "accepts_whole_block": column([row.accepts_whole_block for row in rows]),
        "stop_ids": column([row.stop_ids for row in rows]),
        "remaining": column([row.remaining for row in rows]),
        "is_denoise": column([row.is_denoise for row in rows]),
    }


def filled_by_loop(block: Block, is_strict: bool = False) -> list[int]:
    """Positions that one step fills."""
    if not block.is_denoise:
        return []
    masked = [index for index in range(block.row_len) if block.is_masked[index]]
    sure = [-1.0 if math.isnan(value) else value for value in block.confidence]
    ranked = sorted(masked, key=lambda index: (-sure[index], index))
    if block.step + 1 >= block.max_denoising_steps:
        return masked
    threshold = block.confidence_threshold
    if threshold is None:
        whole, rest = divmod(block.row_len - block.is_seeded, block.max_denoising_steps)
        return ranked[: whole + (block.step < rest)]
    passing = [index for index in masked if sure[index] > threshold or (sure[index] == threshold and not is_strict)]
    return sorted({*passing, *ranked[:1]})


def step_by_loop(block: Block, is_strict: bool = False) -> tuple[list[int], list[bool], bool, bool]:
    """Canvas, masks left, block done, request done: what `unmask_block` must say of one row."""
    filled = filled_by_loop(block, is_strict)
    canvas = [block.chosen[i] if i in filled else token for i, token in enumerate(block.canvas)]
    left = [block.is_denoise and i < block.row_len and m and i not in filled for i, m in enumerate(block.is_masked)]
    first_mask = left.index(True) if any(left) else math.inf
    new = range(int(block.is_seeded), block.row_len)
    stops = [index for index in new if canvas[index] in block.stop_ids and not left[index]]
    is_frozen = not any(left) or (bool(stops) and stops[0] < first_mask)
    is_last = bool(stops) or block.row_len - block.is_seeded >= block.remaining
    if not block.accepts_whole_block:
        return canvas, left, not any(left), False
    return canvas, left, is_frozen, is_frozen and is_last
