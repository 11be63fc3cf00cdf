"""Grammar in block decoding: drafts that keep to it, causal rows masked by it, blocks committed as far as it accepts.

The only rounds in which the host waits for the device: a grammar lives on the host and has to see the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dlm_sglang.decode.state import DENOISE, BlockState

if TYPE_CHECKING:
    from dlm_sglang.decode.round import RoundInputs

_BITS = 32
_EVERYTHING = -1


class Matcher(Protocol):
    """A grammar's state behind a request's output, as SGLang's grammar backends have it."""

    def accept_token(self, token: int) -> None:
        """Go on by a token that the mask allows."""

    def rollback(self, k: int) -> None:
        """Go back by `k` tokens."""

    def is_terminated(self) -> bool:
        """Whether nothing can follow."""

    def fill_vocab_mask(self, vocab_mask: Tensor, idx: int) -> None:
        """Write the bits of the tokens that may follow into row `idx` of `[N, ceil(V / 32)]` int32; all by default."""

    def allocate_vocab_mask(self, vocab_size: int, batch_size: int, device: torch.device | str) -> Tensor | None:
        """A mask that allows everything, on the host; None where the backend masks nothing."""

    def apply_vocab_mask(self, logits: Tensor, vocab_mask: Tensor) -> None:
        """Write -inf at what is not allowed."""


def may_follow(mask: Tensor, row: int, token: int) -> bool:
    """Whether a filled mask allows a token."""
    # A tensor's own indexing costs tens of times as much.
    return bool(int(mask.numpy()[row, token // _BITS]) >> token % _BITS & 1)


@dataclass
class GrammarRow:
    """A row with a grammar.

    Attributes:
        row: its index in the round.
        start: flat index of its first query token.
        width: its query tokens.
        matcher: behind what the request has emitted, the block's seed included.
        commits_by_prefix: a diffusion block, of which the accepted prefix is committed as drafted.
    """

    row: int
    start: int
    width: int
    matcher: Matcher
    commits_by_prefix: bool
    is_denoise: bool = field(default=False, init=False)
    canvas: list[int] = field(default_factory=list, init=False)
    is_masked: list[bool] = field(default_factory=list, init=False)
    num_reachable: int = field(default=0, init=False)


class GrammarRows:
    """The rows of a round that have a grammar.

    Args:
        rows: the rows.
        vocab_size: V.
        device: where the rounds run.
    """

    def __init__(self, rows: Sequence[GrammarRow], vocab_size: int, device: torch.device | str) -> None:
        self.rows = list(rows)
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._indexes = torch.tensor([row.row for row in rows]).to(device, non_blocking=True)
        self._mask: tuple[Tensor, Tensor, Matcher] | None = None

    def begin(self, state: BlockState, inputs: RoundInputs) -> None:
        """Read where the rows stand and follow the committing ones through their grammars; waits for the device."""
        slots = inputs.slots[self._indexes]
        width = state.max_block_length
        read = torch.cat((state.progress[slots, :2], state.canvas[slots], state.is_masked[slots].long()), dim=1)
        for row, (length, phase, *values) in zip(self.rows, read.tolist(), strict=True):
            row.is_denoise = phase == DENOISE
            row.canvas = values[:width][: min(length, row.width)]
            row.is_masked = [bool(value) for value in values[width:]][: len(row.canvas)]
        self._mask = self._mask_commits([row for row in self.rows if not row.is_denoise])

    def adjust(self, logits: Tensor) -> None:
        """Mask what no grammar allows at committing rows, in `[T, V]` logits, in place."""
        if self._mask is None:
            return
        tokens, mask, matcher = self._mask
        own = logits[tokens]
        matcher.apply_vocab_mask(own, mask)
        logits[tokens] = own

    def adjust_seeds(self, logits: Tensor) -> None:
        """Mask the logits `[R, V]` of a prefill in place."""
        matcher = self.rows[0].matcher
        mask = matcher.allocate_vocab_mask(self._vocab_size, len(self.rows), self._device)
        if mask is None:
            return
        for number, row in enumerate(self.rows):
            if not row.matcher.is_terminated():
                row.matcher.fill_vocab_mask(mask, number)
        own = logits[self._indexes]
        matcher.apply_vocab_mask(own, mask.to(self._device, non_blocking=True))
        logits[self._indexes] = own

    def revise(self, token_ids: Tensor, logits: Tensor, choose_again: Callable[[Tensor, int], int]) -> None:
        """Make drafts follow their grammars, and commit what is drafted as far as its grammar accepts it.

        Args:
            token_ids: `[T]` int64, changed in place.
            logits: `[T, V]` float, as they were chosen from.
            choose_again: the choice of flat token i from other logits `[1, V]`.
        """
        drafting = [row for row in self.rows if row.is_denoise]
        chosen = token_ids.tolist() if drafting else []
        changed: dict[int, int] = {}
        for row in drafting:
            changed.update(self._draft(row, chosen, logits, choose_again))
        for row in self.rows:
            if row.commits_by_prefix and not row.is_denoise:
                changed.update({row.start + i: row.canvas[i + 1] for i in range(row.num_reachable - 1)})
        if changed:
            where = torch.tensor(list(changed)).to(self._device)
            token_ids[where] = torch.tensor(list(changed.values())).to(self._device)

    def _mask_commits(self, rows: Sequence[GrammarRow]) -> tuple[Tensor, Tensor, Matcher] | None:
        """One mask for every causal position that the grammars let the verifier reach."""
        tokens: list[int] = []
        mask = None
        for row in rows:
            if mask is None:
                num_tokens = sum(len(row.canvas) for row in rows)
                mask = row.matcher.allocate_vocab_mask(self._vocab_size, num_tokens, self._device)
            if mask is not None:
                row.num_reachable = _mask_commit(row, mask, len(tokens))
                tokens += range(row.start, row.start + row.num_reachable)
        if mask is None or not tokens:
            return None
        there = torch.tensor(tokens).to(self._device, non_blocking=True)
        return there, mask[: len(tokens)].to(self._device, non_blocking=True), rows[0].matcher

    def _draft(
        self, row: GrammarRow, chosen: Sequence[int], logits: Tensor, choose_again: Callable[[Tensor, int], int]
    ) -> dict[int, int]:
        """Walk through a draft, choosing anew where the grammar refuses what was chosen: flat index to token.

        What was filled in an earlier step and is refused now stays; the commit ends there.
        """
        changed: dict[int, int] = {}
        num_accepted = 0
        mask = row.matcher.allocate_vocab_mask(self._vocab_size, 1, self._device)
        for offset in range(1, len(row.canvas)):
            if mask is None or row.matcher.is_terminated():
                break
            token = row.start + offset
            mask.fill_(_EVERYTHING)
            row.matcher.fill_vocab_mask(mask, 0)
            proposed = chosen[token] if row.is_masked[offset] else row.canvas[offset]
            if not may_follow(mask, 0, proposed):
                if not row.is_masked[offset]:
                    break
                own = logits[token : token + 1].clone()
                row.matcher.apply_vocab_mask(own, mask.to(self._device))
                proposed = choose_again(own, token)
                if not may_follow(mask, 0, proposed):
                    break
                changed[token] = proposed
            row.matcher.accept_token(proposed)
            num_accepted += 1
        if num_accepted:
            row.matcher.rollback(num_accepted)
        return changed


def _mask_commit(row: GrammarRow, mask: Tensor, first: int) -> int:
    """Fill the masks of a causal row from `first` on; how many of its positions the verifier can reach.

    Position i chooses what follows canvas[0..i]; what follows a token that the grammar refuses is never emitted.
    A row whose request ended stays in an overlapped loop for one round more.
    """
    if row.matcher.is_terminated():
        return 0
    num_accepted = 0
    for offset in range(len(row.canvas)):
        row.matcher.fill_vocab_mask(mask, first + offset)
        is_last = offset + 1 == len(row.canvas)
        if is_last or not may_follow(mask, first + offset, row.canvas[offset + 1]):
            break
        row.matcher.accept_token(row.canvas[offset + 1])
        num_accepted += 1
        if row.matcher.is_terminated():
            break
    if num_accepted:
        row.matcher.rollback(num_accepted)
    return num_accepted + 1
