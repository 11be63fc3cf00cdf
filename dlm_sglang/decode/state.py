"""Block state of every request slot, in tensors indexed by `req_pool_idx`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from dlm_kernels.ops.advance_rows import RowState
from torch import Tensor

from dlm_sglang.decode.policy import DecodePolicy

DENOISE = 0
COMMIT = 1

# SGLang hands out KV slots, and request slots, from 1 on; padding writes to 0.
PADDING_SLOT = 0

# Stop tokens that rounds look for. SGLang's own check ends a request on any further ones, after the round.
MAX_STOP_IDS = 16


class Progress(NamedTuple):
    """Where each row stands, `[R]` int64 each.

    Attributes:
        length: positions of the current block; the context's end may have cut it.
        phase: `DENOISE` or `COMMIT`.
        step: denoise forwards done in this block.
        remaining: tokens that may still be emitted.
    """

    length: Tensor
    phase: Tensor
    step: Tensor
    remaining: Tensor


class PolicyInts(NamedTuple):
    """Integer settings of each row's policy, `[R]` int64 each."""

    block_length: Tensor
    max_denoising_steps: Tensor
    accepts_whole_block: Tensor
    is_seeded: Tensor
    uses_drafter: Tensor
    top_k: Tensor
    seed: Tensor


class PolicyFloats(NamedTuple):
    """Fractional settings of each row's policy, `[R]` float32 each; a threshold of NaN is the even schedule."""

    confidence_threshold: Tensor
    temperature: Tensor
    denoise_temperature: Tensor
    top_p: Tensor
    min_p: Tensor


class BlockState:
    """Canvas, progress and policy of `P` request slots.

    A slot's row is written when its prefill ends and read until the request ends; a new request overwrites
    it. Nothing is allocated per request, so finish, length, abort and retraction have nothing to free.
    Columns that are read together lie in one tensor: a round gathers each group once.

    Attributes:
        canvas: `[P, L]` int64, token ids of the current block, mask id where unfilled.
        is_masked: `[P, L]` bool, false past the block. A flag, not a token comparison: the mask id in a prompt
            is ordinary text.
        progress: `[P, 4]` int64, columns of `Progress`.
        policy_ints: `[P, 7]` int64, columns of `PolicyInts`.
        policy_floats: `[P, 5]` float32, columns of `PolicyFloats`.
        stop_ids: `[P, 16]` int64, -1 where unused.
        rows: the same tensors, as `advance_rows` takes them.
    """

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

        def zeros(width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((num_slots, width), dtype=dtype, device=device)

        self.canvas = torch.full((num_slots, max_block_length), mask_token_id, dtype=torch.int64, device=device)
        self.is_masked = zeros(max_block_length, torch.bool)
        self.progress = zeros(len(Progress._fields), torch.int64)
        self.policy_ints = zeros(len(PolicyInts._fields), torch.int64)
        self.policy_floats = zeros(len(PolicyFloats._fields), torch.float32)
        # Padding rows use a slot that no request ever has; it must be possible to divide by its steps.
        self.policy_ints[:, PolicyInts._fields.index("max_denoising_steps")] = 1
        self.stop_ids = torch.full((num_slots, MAX_STOP_IDS), -1, dtype=torch.int64, device=device)
        self.offsets = torch.arange(max_block_length, device=device)
        self.rows = RowState(
            canvas=self.canvas,
            is_masked=self.is_masked,
            progress=self.progress,
            policy_ints=self.policy_ints,
            policy_floats=self.policy_floats,
            stop_ids=self.stop_ids,
            mask_token_id=mask_token_id,
            context_length=context_length,
        )

    def progress_of(self, slots: Tensor) -> Progress:
        """Gather `Progress` of `[R]` slots."""
        return Progress(*self.progress.index_select(0, slots).unbind(1))

    def ints_of(self, slots: Tensor) -> PolicyInts:
        """Gather `PolicyInts` of `[R]` slots."""
        return PolicyInts(*self.policy_ints.index_select(0, slots).unbind(1))

    def floats_of(self, slots: Tensor) -> PolicyFloats:
        """Gather `PolicyFloats` of `[R]` slots."""
        return PolicyFloats(*self.policy_floats.index_select(0, slots).unbind(1))

    def admit(
        self, slots: Tensor, policies: list[DecodePolicy], emitted: list[int], seed_ids: Tensor, seq_lens: list[int]
    ) -> None:
        """Start the first block of requests whose prefill ended; later ones `advance_rows` begins.

        A block is `[seed, MASK, ...]`, or all masked where blocks are unseeded. A seeded block of one position, an
        autoregressive step or the last one before the context end, has no mask and goes straight to its commit.

        Args:
            slots: `[R]` int64, request slots, R >= 1.
            policies: R policies.
            emitted: R counts of output tokens so far, the seed included.
            seed_ids: `[R]` int64, token after the last cached one; ignored where blocks are unseeded.
            seq_lens: R counts of cached tokens.
        """
        # One table for all columns: each copy to the device and each scatter costs more than its bytes.
        table = self._column(
            [
                self._first_row(policy, policy.max_new_tokens - count, seq_len)
                for policy, count, seq_len in zip(policies, emitted, seq_lens, strict=True)
            ],
            torch.int64,
        )
        ints, progress, stop_ids = table.split((len(PolicyInts._fields), len(Progress._fields), MAX_STOP_IDS), dim=1)
        self.policy_ints[slots] = ints
        self.progress[slots] = progress
        self.stop_ids[slots] = stop_ids
        self.policy_floats[slots] = self._column(
            [
                [
                    math.nan if policy.confidence_threshold is None else policy.confidence_threshold,
                    policy.temperature,
                    policy.denoise_temperature,
                    policy.top_p,
                    policy.min_p,
                ]
                for policy in policies
            ],
            torch.float32,
        )
        is_later = self.offsets >= PolicyInts(*ints.unbind(1)).is_seeded[:, None]
        self.canvas[slots] = torch.where(is_later, self.mask_token_id, seed_ids[:, None])
        self.is_masked[slots] = is_later & (self.offsets < progress[:, :1])

    def retarget(self, slots: Tensor, seq_lens: Tensor, lengths: list[int], is_resized: list[bool]) -> None:
        """Give blocks that begin from now on another length.

        Args:
            slots, seq_lens: `[R]` int64.
            lengths: R block lengths.
            is_resized: R flags; the block under way, which holds nothing but its seed, takes its new length at once.
        """
        lengths_there, resized_there = self._column(
            list(map(list, zip(lengths, is_resized, strict=True))), torch.int64
        ).unbind(1)
        self.policy_ints[slots, PolicyInts._fields.index("block_length")] = lengths_there
        length = torch.minimum(lengths_there, self.context_length - seq_lens)
        resizes, is_later = resized_there[:, None].bool(), self.offsets >= 1
        kept = self.progress[slots]
        fresh = torch.stack((length, (length <= 1).long(), torch.zeros_like(length), kept[:, -1]), dim=1)
        self.progress[slots] = torch.where(resizes, fresh, kept)
        self.canvas[slots] = torch.where(resizes & is_later, self.mask_token_id, self.canvas[slots])
        self.is_masked[slots] = torch.where(resizes, is_later & (self.offsets < length[:, None]), self.is_masked[slots])

    def set_effort(self, slots: Tensor, steps: list[int], thresholds: list[float | None]) -> None:
        """Give `[R]` slots other numbers of denoising steps and confidence thresholds, from the coming round on."""
        self.policy_ints[slots, PolicyInts._fields.index("max_denoising_steps")] = self._column(steps, torch.int64)
        values = [math.nan if threshold is None else threshold for threshold in thresholds]
        self.policy_floats[slots, PolicyFloats._fields.index("confidence_threshold")] = self._column(
            values, torch.float32
        )

    def _first_row(self, policy: DecodePolicy, remaining: int, seq_len: int) -> list[int]:
        """Columns of `PolicyInts`, `Progress` and the stop ids."""
        length = min(policy.first_block_length, self.context_length - seq_len)
        stop_ids = policy.stop_ids[:MAX_STOP_IDS]
        return [
            policy.first_block_length,
            policy.max_denoising_steps,
            policy.accepts_whole_block,
            policy.seeded_blocks,
            policy.uses_drafter,
            policy.top_k,
            policy.seed,
            length,
            COMMIT if length <= policy.seeded_blocks else DENOISE,
            0,
            remaining,
            *stop_ids,
            *(-1 for _ in range(MAX_STOP_IDS - len(stop_ids))),
        ]

    def _column(
        self, values: list[int] | list[float] | list[list[int]] | list[list[float]], dtype: torch.dtype
    ) -> Tensor:
        column = torch.tensor(values, dtype=dtype, pin_memory=self.device.type == "cuda")
        return column.to(self.device, non_blocking=True)
