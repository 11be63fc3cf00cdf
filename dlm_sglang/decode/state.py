"""Block state of every request slot, in tensors indexed by `req_pool_idx`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlm_sglang.decode.policy import DecodePolicy

DENOISE = 0
COMMIT = 1

_INT_COLUMNS = (
    "block_length",
    "max_denoising_steps",
    "accepts_whole_block",
    "is_seeded",
    "uses_drafter",
    "top_k",
    "seed",
    "phase",
    "step",
    "remaining",
)
_FLOAT_COLUMNS = ("confidence_threshold", "temperature", "denoise_temperature", "top_p", "min_p")
_MIN_STOP_COLUMNS = 4


class BlockState:
    """Canvas, phase and policy of `P` request slots.

    A slot's row is written when its prefill ends and read until the request ends; a new request overwrites
    it. Nothing is allocated per request, so finish, length, abort and retraction have nothing to free.

    Attributes:
        canvas: `[P, L]` int64, token ids of the current block, mask id where unfilled.
        is_masked: `[P, L]` bool. A flag, not a token comparison: the mask id in a prompt is ordinary text.
        ints: `[P, 10]` int64 with named views (`phase`, `step`, `remaining`, ...).
        floats: `[P, 5]` float32 with named views (`confidence_threshold` is NaN for the even schedule).
        stop_ids: `[P, E]` int64, -1 where unused.
    """

    block_length: Tensor
    max_denoising_steps: Tensor
    accepts_whole_block: Tensor
    is_seeded: Tensor
    uses_drafter: Tensor
    top_k: Tensor
    seed: Tensor
    phase: Tensor
    step: Tensor
    remaining: Tensor
    confidence_threshold: Tensor
    temperature: Tensor
    denoise_temperature: Tensor
    top_p: Tensor
    min_p: Tensor

    def __init__(
        self,
        num_slots: int,
        max_block_length: int,
        *,
        mask_token_id: int,
        context_length: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.mask_token_id = mask_token_id
        self.context_length = context_length
        self.max_block_length = max_block_length
        self.device = torch.device(device)
        self.canvas = torch.full((num_slots, max_block_length), mask_token_id, dtype=torch.int64, device=device)
        self.is_masked = torch.zeros((num_slots, max_block_length), dtype=torch.bool, device=device)
        self.ints = torch.zeros((num_slots, len(_INT_COLUMNS)), dtype=torch.int64, device=device)
        self.floats = torch.zeros((num_slots, len(_FLOAT_COLUMNS)), dtype=torch.float32, device=device)
        self.stop_ids = torch.full((num_slots, _MIN_STOP_COLUMNS), -1, dtype=torch.int64, device=device)
        for column, name in enumerate(_INT_COLUMNS):
            setattr(self, name, self.ints[:, column])
        for column, name in enumerate(_FLOAT_COLUMNS):
            setattr(self, name, self.floats[:, column])

    def admit(
        self, slots: Tensor, policies: list[DecodePolicy], emitted: list[int], seed_ids: Tensor, seq_lens: Tensor
    ) -> None:
        """Start the first block of requests whose prefill ended.

        Args:
            slots: `[R]` int64, request slots, R >= 1.
            policies: R policies.
            emitted: R counts of output tokens so far, the seed included.
            seed_ids: `[R]` int64, token after the last cached one; ignored where blocks are unseeded.
            seq_lens: `[R]` int64, cached tokens.
        """
        ints = [
            [
                policy.block_length,
                policy.max_denoising_steps,
                policy.accepts_whole_block,
                policy.seeded_blocks,
                policy.uses_drafter,
                policy.top_k,
                policy.seed,
                COMMIT,
                0,
                policy.max_new_tokens - count,
            ]
            for policy, count in zip(policies, emitted, strict=True)
        ]
        floats = [
            [
                math.nan if policy.confidence_threshold is None else policy.confidence_threshold,
                policy.temperature,
                policy.denoise_temperature,
                policy.top_p,
                policy.min_p,
            ]
            for policy in policies
        ]
        self.ints[slots] = torch.tensor(ints, dtype=torch.int64).to(self.device, non_blocking=True)
        self.floats[slots] = torch.tensor(floats, dtype=torch.float32).to(self.device, non_blocking=True)
        self._write_stop_ids(slots, [policy.stop_ids for policy in policies])
        keep = torch.zeros(len(policies), dtype=torch.bool, device=self.device)
        self.begin_blocks(slots, seed_ids, seq_lens, keep)

    def begin_blocks(self, slots: Tensor, seed_ids: Tensor, seq_lens: Tensor, keep: Tensor) -> None:
        """Lay out a fresh block, `[seed, MASK, ...]` or all masked where unseeded, in rows not kept.

        A seeded block of one position, an autoregressive step or the last one before the context end, has no
        mask and goes straight to its commit.

        Args:
            slots: `[R]` int64.
            seed_ids: `[R]` int64.
            seq_lens: `[R]` int64, committed tokens before the block.
            keep: `[R]` bool, rows whose block goes on.
        """
        is_seeded = self.is_seeded[slots].bool()
        offsets = torch.arange(self.max_block_length, device=self.device)
        fresh_mask = ~(is_seeded[:, None] & (offsets == 0))
        fresh_canvas = torch.where(fresh_mask, self.mask_token_id, seed_ids[:, None])
        self.canvas[slots] = torch.where(keep[:, None], self.canvas[slots], fresh_canvas)
        self.is_masked[slots] = torch.where(keep[:, None], self.is_masked[slots], fresh_mask)
        self.step[slots] = torch.where(keep, self.step[slots], 0)
        length = torch.minimum(self.block_length[slots], self.context_length - seq_lens)
        fresh_phase = torch.where((length > 1) | ~is_seeded, DENOISE, COMMIT)
        self.phase[slots] = torch.where(keep, self.phase[slots], fresh_phase)

    def _write_stop_ids(self, slots: Tensor, stop_ids: list[tuple[int, ...]]) -> None:
        width = max(len(ids) for ids in stop_ids)
        if width > self.stop_ids.shape[1]:
            wider = torch.full((self.stop_ids.shape[0], width), -1, dtype=torch.int64, device=self.device)
            wider[:, : self.stop_ids.shape[1]] = self.stop_ids
            self.stop_ids = wider
        width = self.stop_ids.shape[1]
        rows = [list(ids) + [-1] * (width - len(ids)) for ids in stop_ids]
        self.stop_ids[slots] = torch.tensor(rows, dtype=torch.int64).to(self.device, non_blocking=True)
