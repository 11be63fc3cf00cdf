"""The controls of a round's rows, batched on the device; nothing in here waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_sglang.decode.controls import Controls, History
from dlm_sglang.decode.layout import starts_of
from dlm_sglang.decode.state import DENOISE, BlockState

if TYPE_CHECKING:
    from dlm_sglang.decode.round import RoundInputs

_NEVER = 1 << 60


@dataclass(frozen=True)
class Choices:
    """What the choice of each controlled token depends on beside its logits.

    Attributes:
        position: `[T']` int64, absolute position of the token to choose.
        canvas: `[R', L]` int64, the rows' blocks; None in a prefill.
        precedes: `[T', L]` bool, filled positions of the block before the choice that the history does not hold yet.
        is_commit: `[R']` bool, the row's forward is causal.
        length: `[R']` int64, positions of the block.
    """

    position: Tensor
    canvas: Tensor | None = None
    precedes: Tensor | None = None
    is_commit: Tensor | None = None
    length: Tensor | None = None


class ControlRows:
    """R' rows with controls, T' query tokens; valid as long as the round's layout is.

    The histories' tensors become rows of one tensor here, so that a round updates all of them at once.

    Args:
        rows: of each controlled row its index in the round, controls and history.
        widths: query tokens of every row of the round.
        vocab_size: V.
        device: where the rounds run.
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, Controls, History]],
        widths: Sequence[int],
        vocab_size: int,
        device: torch.device | str,
    ) -> None:
        self._device = torch.device(device)
        self.controls = [controls for _, controls, _ in rows]
        all_starts = starts_of(widths)
        starts = [all_starts[index] for index, _, _ in rows]
        own_widths = [widths[index] for index, _, _ in rows]
        firsts = starts_of(own_widths)
        self.max_width = max(own_widths)
        tokens = [start + offset for start, width in zip(starts, own_widths, strict=True) for offset in range(width)]
        self.covers_round = len(tokens) == sum(widths)
        self.rows = self._there([index for index, _, _ in rows])
        self.tokens = self._there(tokens)
        self.row_of_token = self._there([row for row, width in enumerate(own_widths) for _ in range(width)])
        self.offset_of_token = self._there([offset for width in own_widths for offset in range(width)])
        self._is_seeded = self._there([int(controls.is_seeded) for controls in self.controls])
        self._spans = [range(first, first + width) for first, width in zip(firsts, own_widths, strict=True)]
        self._set_penalties([history for _, _, history in rows], vocab_size)
        self._set_biases()
        self._set_thinking([history for _, _, history in rows])
        self._set_fixed()
        self._by_prefix = self._of_rows(lambda controls: controls.commits_by_prefix)

    @property
    def changes_logits(self) -> bool:
        """Whether `adjust` does anything."""
        return self._counts is not None or self._bias is not None or self._bans is not None

    def fill(self, state: BlockState, slots: Tensor, seq_lens: Tensor) -> None:
        """Write what is certain into the masks of the rows' blocks, so that the model sees it from the first step on.

        Args:
            state: block state, changed in place.
            slots, seq_lens: `[R]` int64, as the round's.
        """
        if self._fixed is None and self._thinking is None:
            return
        own, offsets = slots[self.rows], state.offsets[: self.max_width]
        canvas, is_masked = state.canvas[own, : self.max_width], state.is_masked[own, : self.max_width]
        positions = seq_lens[self.rows, None] + offsets
        ids = torch.full_like(canvas, -1)
        if self._fixed is not None:
            first, fixed = self._fixed
            places = positions - first[:, None]
            is_there = (places >= 0) & (places < fixed.shape[1])
            ids = torch.where(is_there, fixed.gather(1, places.clamp(0, fixed.shape[1] - 1)), ids)
        if self._thinking is not None:
            ends = (canvas == self._thinking.end_id[:, None]) & ~is_masked
            is_open = ~self._thinking.has_ended[:, None] & (ends.long().cumsum(dim=1) == 0)
            is_end = (positions == self._thinking.position[:, None]) & is_open
            ids = torch.where(is_end, self._thinking.end_id[:, None], ids)
        is_put = is_masked & (ids >= 0)
        state.canvas[own, : self.max_width] = torch.where(is_put, ids, canvas)
        state.is_masked[own, : self.max_width] = is_masked & ~is_put

    def choices(self, state: BlockState, inputs: RoundInputs) -> Choices:
        """What the rows of a round choose by."""
        positions = inputs.positions[self.tokens]
        if inputs.layout.is_autoregressive:
            return Choices(positions + 1)
        slots = inputs.slots[self.rows]
        progress = state.progress_of(slots)
        is_commit = progress.phase != DENOISE
        offsets = state.offsets[: self.max_width]
        own = self.offset_of_token[:, None]
        commits = is_commit[self.row_of_token]
        before = torch.where(commits[:, None], offsets <= own, offsets < own)
        is_filled = ~state.is_masked[slots, : self.max_width] & (offsets >= self._is_seeded[:, None])
        return Choices(
            position=positions + commits,
            canvas=state.canvas[slots, : self.max_width],
            precedes=before & is_filled[self.row_of_token],
            is_commit=is_commit,
            length=progress.length,
        )

    def adjust(self, logits: Tensor, choices: Choices) -> None:
        """Apply penalties, biases and bans.

        Args:
            logits: `[T, V]` float, changed in place at the rows' tokens.
            choices: of this round.

        Source: frequency and presence penalties as in OpenAI's API reference, the repetition penalty of Keskar et
        al. 2019 (arXiv 1909.05858), section 4.1, over output tokens as SGLang has it.
        """
        if not self.changes_logits:
            return
        own = logits if self.covers_round else logits[self.tokens]
        if self._counts is not None:
            self._penalise(own, self._counts, choices)
        if self._bias is not None:
            tokens, ids, values = self._bias
            own.index_put_((tokens, ids), values.to(own.dtype), accumulate=True)
        if self._bans is not None:
            tokens, ids, allowed_from = self._bans
            ban = torch.where(choices.position[tokens] < allowed_from, -torch.inf, 0.0)
            own.index_put_((tokens, ids), ban.to(own.dtype), accumulate=True)
        if not self.covers_round:
            logits[self.tokens] = own

    def revise(self, token_ids: Tensor, confidence: Tensor, choices: Choices) -> None:
        """Put what is certain in the place of what was chosen: the end of a thought, a committed block.

        Args:
            token_ids: `[T]` int64, changed in place.
            confidence: `[T]` float64, changed in place; 1 where a token is forced.
            choices: of this round.
        """
        if self._by_prefix is not None and choices.canvas is not None:
            assert choices.is_commit is not None and choices.length is not None
            following = (self.offset_of_token + 1).clamp(max=self.max_width - 1)
            is_drafted = self._by_prefix & choices.is_commit
            is_drafted = is_drafted[self.row_of_token]
            is_drafted = is_drafted & (self.offset_of_token + 1 < choices.length[self.row_of_token])
            drafted = choices.canvas[self.row_of_token, following]
            token_ids[self.tokens] = torch.where(is_drafted, drafted, token_ids[self.tokens])
        if self._thinking is not None:
            is_forced = self._ends_thought(choices)
            token_ids[self.tokens] = torch.where(
                is_forced, self._thinking.end_id[self.row_of_token], token_ids[self.tokens]
            )
            confidence[self.tokens] = torch.where(is_forced, 1.0, confidence[self.tokens])

    def remember(self, token_ids: Tensor, accept_lens: Tensor) -> None:
        """Add what a round emitted to the histories.

        Args:
            token_ids: `[R, L]` int64.
            accept_lens: `[R]` int64.
        """
        if self._counts is None and self._thinking is None:
            return
        emitted = token_ids[self.rows]
        is_emitted = torch.arange(emitted.shape[1], device=self._device) < accept_lens[self.rows, None]
        if self._counts is not None:
            self._counts.scatter_add_(1, emitted, is_emitted.float())
        if self._thinking is not None:
            ends = (emitted == self._thinking.end_id[:, None]) & is_emitted
            self._thinking.has_ended.logical_or_(ends.any(dim=1))

    def _penalise(self, logits: Tensor, counts: Tensor, choices: Choices) -> None:
        assert self._factors is not None
        seen = counts[self.row_of_token]
        if choices.canvas is not None and choices.precedes is not None:
            seen.scatter_add_(1, choices.canvas[self.row_of_token], choices.precedes.float())
        frequency, presence, repetition = self._factors[self.row_of_token].unbind(1)
        is_seen = seen > 0
        # SGLang's order: what is subtracted first decides which way the repetition penalty goes.
        logits -= seen * frequency[:, None] + is_seen * presence[:, None]
        weakened = torch.where(logits > 0, logits / repetition[:, None], logits * repetition[:, None])
        logits.copy_(torch.where(is_seen, weakened, logits))

    def _ends_thought(self, choices: Choices) -> Tensor:
        """`[T']` bool, the budget ends at this token and nothing before it ended the thought."""
        assert self._thinking is not None
        has_ended = self._thinking.has_ended[self.row_of_token]
        if choices.canvas is not None and choices.precedes is not None:
            ends = choices.canvas == self._thinking.end_id[:, None]
            has_ended = has_ended | (ends[self.row_of_token] & choices.precedes).any(dim=1)
        return (choices.position == self._thinking.position[self.row_of_token]) & ~has_ended

    def _set_penalties(self, histories: Sequence[History], vocab_size: int) -> None:
        self._counts = self._factors = None
        if all(history.counts is None for history in histories):
            return
        none = torch.zeros(vocab_size, device=self._device)
        self._counts = torch.stack([none if history.counts is None else history.counts for history in histories])
        for history, counts in zip(histories, self._counts, strict=True):
            history.counts = counts if history.counts is not None else None
        factors = [(one.frequency_penalty, one.presence_penalty, one.repetition_penalty) for one in self.controls]
        self._factors = torch.tensor(factors).to(self._device, non_blocking=True)

    def _set_biases(self) -> None:
        biases = [
            (token, token_id, value)
            for controls, span in zip(self.controls, self._spans, strict=True)
            for token in span
            for token_id, value in controls.logit_bias
        ]
        bans = [
            (token, token_id, controls.first_position + controls.min_new_tokens)
            for controls, span in zip(self.controls, self._spans, strict=True)
            if controls.min_new_tokens > 0
            for token in span
            for token_id in controls.banned_ids
        ]
        self._bias = self._bans = None
        if biases:
            tokens, ids, values = zip(*biases, strict=True)
            bias = torch.tensor(values, dtype=torch.float32).to(self._device, non_blocking=True)
            self._bias = (self._there(tokens), self._there(ids), bias)
        if bans:
            tokens, ids, allowed_from = zip(*bans, strict=True)
            self._bans = (self._there(tokens), self._there(ids), self._there(allowed_from))

    def _set_thinking(self, histories: Sequence[History]) -> None:
        self._thinking: _Thinking | None = None
        if all(controls.max_thinking_tokens is None for controls in self.controls):
            return
        never = torch.zeros((), dtype=torch.bool, device=self._device)
        ended = [never if one.has_ended_thinking is None else one.has_ended_thinking for one in histories]
        self._thinking = _Thinking(
            position=self._there(
                [
                    _NEVER if one.max_thinking_tokens is None else one.first_position + one.max_thinking_tokens
                    for one in self.controls
                ]
            ),
            end_id=self._there([one.end_think_id for one in self.controls]),
            has_ended=torch.stack(ended),
        )
        for history, has_ended in zip(histories, self._thinking.has_ended, strict=True):
            history.has_ended_thinking = has_ended if history.has_ended_thinking is not None else None

    def _set_fixed(self) -> None:
        self._fixed: tuple[Tensor, Tensor] | None = None
        longest = max(len(controls.fixed_ids) for controls in self.controls)
        if longest:
            padded = [[*one.fixed_ids, *(-1 for _ in range(longest - len(one.fixed_ids)))] for one in self.controls]
            fixed = torch.tensor(padded, dtype=torch.int64).to(self._device, non_blocking=True)
            self._fixed = (self._there([one.first_position for one in self.controls]), fixed)

    def _of_rows(self, condition: Callable[[Controls], bool]) -> Tensor | None:
        flags = [condition(controls) for controls in self.controls]
        return torch.tensor(flags).to(self._device, non_blocking=True) if any(flags) else None

    def _there(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _Thinking:
    """`[R']` each: where the budget ends, the token that ends the thought, and whether it was emitted."""

    position: Tensor
    end_id: Tensor
    has_ended: Tensor
