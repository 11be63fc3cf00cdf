"""What a request asks of each token's choice beyond sampling: penalties, biases, bans, a thinking budget, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Controls:
    """One request's controls; the host knows them from its first prefill on.

    Attributes:
        frequency_penalty: taken from a token's logit for each time that the output holds it.
        presence_penalty: taken from it once if the output holds it.
        repetition_penalty: divides a positive logit, multiplies a negative one, if the output holds the token.
        logit_bias: pairs of token id and what its logit gains.
        min_new_tokens: output tokens before any of `banned_ids` may come.
        banned_ids: tokens that would end the request.
        max_thinking_tokens: output tokens before `end_think_id` is forced, None for no budget.
        end_think_id: the token that ends a thought.
        first_position: absolute position of the first output token.
        wants_logprobs: log-probabilities are returned.
        num_top_logprobs: alternatives returned beside them.
        commits_by_prefix: a diffusion block is committed by its causal rows, position by position, instead of whole.
            Grammar and log-probabilities need it.
        is_seeded: a block's first position was emitted before the block.
        fixed_ids: what the output has to hold from its first position on, -1 where the model chooses.
    """

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    banned_ids: tuple[int, ...] = ()
    max_thinking_tokens: int | None = None
    end_think_id: int = -1
    first_position: int = 0
    wants_logprobs: bool = False
    num_top_logprobs: int = 0
    commits_by_prefix: bool = False
    is_seeded: bool = True
    fixed_ids: tuple[int, ...] = ()

    @property
    def has_penalties(self) -> bool:
        return self.frequency_penalty != 0 or self.presence_penalty != 0 or self.repetition_penalty != 1

    @property
    def concerns_choice(self) -> bool:
        """Whether they change which token is chosen, or how a block is committed."""
        return (
            self.has_penalties
            or bool(self.logit_bias)
            or self.min_new_tokens > 0
            or self.max_thinking_tokens is not None
            or self.commits_by_prefix
            or bool(self.fixed_ids)
        )


@dataclass
class History:
    """What the controls of one request remember of its output, on the device.

    Attributes:
        counts: `[V]` float32, times that the output holds each token; None without penalties.
        has_ended_thinking: `[]` bool, the output holds `end_think_id`; None without a budget.
    """

    counts: Tensor | None = None
    has_ended_thinking: Tensor | None = None


def history_of(controls: Controls, output_ids: Sequence[int], vocab_size: int, device: torch.device | str) -> History:
    """Remember an output anew, when a prefill begins.

    Args:
        controls: the request's.
        output_ids: its output tokens so far, known to the host.
        vocab_size: V.
        device: where the rounds run.
    """
    counts = ended = None
    if controls.has_penalties:
        ids = torch.tensor(list(output_ids), dtype=torch.int64)
        counts = torch.bincount(ids, minlength=vocab_size).float().to(device, non_blocking=True)
    if controls.max_thinking_tokens is not None:
        ended = torch.full((), controls.end_think_id in output_ids, device=device)
    return History(counts, ended)
