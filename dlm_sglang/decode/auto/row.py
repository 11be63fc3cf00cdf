"""The block lengths of one request under `auto`, as far as the host can know them.

What a row does is known on the device. The host writes the length that the row's next block will have; a block that
is under way is drafted in one round and verified in the next, so two rounds later the row is in a block of the new
length for certain. Until then its place in a round must hold either. A block of one position holds nothing but its
seed: it is resized in place and needs no such rounds.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from dlm_sglang.decode.auto.acceptance import Frailty
from dlm_sglang.decode.auto.assign import AUTOREGRESSIVE

# Rounds that a block takes: one that drafts, one that verifies.
ROUNDS_PER_BLOCK = 2
# Reason of a request that ended with its first token.
NOT_CHOSEN = "none"
STANDARD_LENGTHS = (AUTOREGRESSIVE, 8, 16, 32)


def allowed_lengths(longest: int) -> tuple[int, ...]:
    """Block lengths that `auto` chooses from: 1 and those of 8, 16, 32 that fit; the longest allowed below 8."""
    fitting = tuple(length for length in STANDARD_LENGTHS if length <= longest)
    return fitting if len(fitting) > 1 else (AUTOREGRESSIVE, longest)


class _Launched(NamedTuple):
    """A round on its way: positions of the row, length of the next block, whether the block was resized before."""

    width: int
    target: int
    is_resized: bool


@dataclass
class AutoRow:
    """Block lengths of one request.

    Attributes:
        lengths: those that may be chosen, ascending.
        target: what the next block to begin will have.
        current: the block that the last processed round left the row in.
        frailty: how its drafts fare beside those of others.
        blocks: verified blocks by length; a token decoded alone is a block of 1.
        reason: why `target` is what it is.
    """

    lengths: tuple[int, ...]
    target: int = AUTOREGRESSIVE
    current: int = AUTOREGRESSIVE
    frailty: Frailty = field(default_factory=Frailty)
    blocks: Counter[int] = field(default_factory=Counter)
    reason: str = NOT_CHOSEN
    _before: int = AUTOREGRESSIVE
    _rounds_since: int = ROUNDS_PER_BLOCK
    _is_resized: bool = False
    _has_started: bool = False
    _launched: deque[_Launched] = field(default_factory=deque)

    def restart(self) -> None:
        """Begin with a prefill, again after a retraction: a block of one position, nothing on its way."""
        self.target = self.current = self._before = AUTOREGRESSIVE
        self._rounds_since, self._is_resized, self._has_started = ROUNDS_PER_BLOCK, False, False
        self._launched.clear()

    @property
    def is_new(self) -> bool:
        """Whether no round was launched since the prefill."""
        return not self._has_started

    @property
    def is_settled(self) -> bool:
        """Whether the row is in a block of `target` for certain, in the coming round."""
        return self._rounds_since >= ROUNDS_PER_BLOCK

    @property
    def width(self) -> int:
        """Positions that the row needs in the coming round."""
        return self.target if self.is_settled else max(self.target, self._before)

    def retarget(self, block_length: int) -> bool:
        """Choose another length; only while settled.

        Returns:
            Whether the block under way has to be resized before the coming round; else the next one has the length.
        """
        assert self.is_settled, "a row changes its length once at a time"
        if self.target == AUTOREGRESSIVE:
            self._is_resized = True
        else:
            self._before, self._rounds_since = self.target, 0
        self.target = block_length
        return self._is_resized

    def launch(self) -> int:
        """A round is launched for the row: the positions that it has in it."""
        width = self.width
        self._launched.append(_Launched(width, self.target, self._is_resized))
        self._rounds_since += 1
        self._has_started, self._is_resized = True, False
        return width

    def processed(self, *, is_denoise: bool) -> tuple[int, int]:
        """The oldest round on its way was processed.

        Returns:
            Its width, and the length of the block that it verified; 0 if it only drafted.
        """
        launched = self._launched.popleft()
        if launched.is_resized:
            self.current = launched.target
        if is_denoise:
            return launched.width, 0
        length, self.current = self.current, launched.target
        self.blocks[length] += 1
        return launched.width, length
