"""Blocks while they are denoised, for the streams that ask to see them (`stream_denoising`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_sglang.decode.policy import DecodePolicy
from dlm_sglang.decode.state import BlockState, Progress

_UNFILLED = -1
_LENGTH_AND_STEP = [Progress._fields.index("length"), Progress._fields.index("step")]


@dataclass(frozen=True)
class Watch:
    """The rows of a batch whose blocks somebody looks at; valid until a request joins or leaves it.

    Attributes:
        rows: their numbers in the batch, at least one.
        index: `[W]` int64, the same on the device.
    """

    rows: tuple[int, ...]
    index: Tensor

    def look(self, state: BlockState, slots: Tensor) -> Tensor:
        """The watched rows' blocks as they stand, in a tensor of their own: later rounds do not change it.

        Args:
            state: block state.
            slots: `[R]` int64, request slots of the batch.

        Returns:
            `[W, P + 2]` int64 for the server's longest block P: token ids, -1 where unfilled; then the block's length
            and its denoise forwards so far.
        """
        watched = slots[self.index]
        canvas = torch.where(state.is_masked[watched], _UNFILLED, state.canvas[watched])
        progress = state.progress[watched]
        return torch.cat((canvas, *(progress[:, column : column + 1] for column in _LENGTH_AND_STEP)), dim=1)


def make_watch(is_watched: Sequence[bool], device: torch.device | str) -> Watch | None:
    """The watch over a batch, or None where nobody looks.

    Args:
        is_watched: one flag per row.
        device: where the rounds run.
    """
    rows = tuple(row for row, watched in enumerate(is_watched) if watched)
    if not rows:
        return None
    index = torch.tensor(rows, dtype=torch.int64, pin_memory=torch.device(device).type == "cuda")
    return Watch(rows, index.to(device, non_blocking=True))


def provisional_block(values: Sequence[int], policy: DecodePolicy, num_emitted: int) -> dict[str, object]:
    """What a client is told of a block that is still denoised; text is added where the tokenizer is.

    Args:
        values: one row of `Watch.look`.
        policy: of the request.
        num_emitted: output tokens before this round; a seeded block begins with the last of them.

    Returns:
        step: denoise forwards of this block so far.
        positions: places in the answer, its first token is 0.
        token_ids: by position; None is still a mask.
        is_final: by position: the token will not change. A diffusion block keeps what it filled in; a draft is up to
            the verifier, all but its seed.
    """
    *canvas, length, step = values
    token_ids = [None if token_id == _UNFILLED else token_id for token_id in canvas[:length]]
    begin = num_emitted - policy.seeded_blocks
    return {
        "step": step,
        "positions": list(range(begin, begin + length)),
        "token_ids": token_ids,
        "is_final": [
            token_id is not None and (policy.accepts_whole_block or offset < policy.seeded_blocks)
            for offset, token_id in enumerate(token_ids)
        ],
    }
