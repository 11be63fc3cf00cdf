"""Rounds and prefills some of whose rows have controls: what happens to logits and choices, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from dlm_kernels.ops.choose_token import choose_token
from dlm_kernels.ops.sample_token import SamplingRows
from torch import Tensor

from dlm_sglang.decode.choose import choose_seeds, choose_tokens, sampling_rows
from dlm_sglang.decode.control_rows import Choices, ControlRows
from dlm_sglang.decode.controls import Controls, History
from dlm_sglang.decode.grammar import GrammarRow, GrammarRows, Matcher
from dlm_sglang.decode.layout import starts_of
from dlm_sglang.decode.logprobs import LogprobRows, RoundLogprobs, log_probabilities
from dlm_sglang.decode.state import BlockState

if TYPE_CHECKING:
    from dlm_sglang.decode.policy import DecodePolicy
    from dlm_sglang.decode.round import RoundInputs


@dataclass(frozen=True)
class RoundControls:
    """What a round's rows ask for beyond sampling; valid as long as the round's layout is.

    Attributes:
        rows: penalties, biases, bans, thinking budgets, blocks committed by prefix.
        grammar: grammars.
        logprobs: rows whose log-probabilities are returned.
    """

    rows: ControlRows | None
    grammar: GrammarRows | None
    logprobs: LogprobRows | None

    def fill(self, state: BlockState, slots: Tensor, seq_lens: Tensor) -> None:
        """Write what is certain into the rows' blocks, before the round is planned."""
        if self.rows is not None:
            self.rows.fill(state, slots, seq_lens)

    def begin(self, state: BlockState, inputs: RoundInputs) -> None:
        """What has to happen before the round's forward; waits for the device if a row has a grammar."""
        if self.grammar is not None:
            self.grammar.begin(state, inputs)

    def choose(self, state: BlockState, inputs: RoundInputs, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Pick a token for every query token of the round, as `choose_tokens` does, under the rows' controls.

        Penalties, biases and bans come before the grammar's mask; what is forced comes after the choice.

        Args:
            state, inputs, logits: as in `choose_tokens`; the logits are changed in place.
        """
        choices = None if self.rows is None else self.rows.choices(state, inputs)
        if self.rows is not None and choices is not None:
            self.rows.adjust(logits, choices)
        if self.grammar is not None:
            self.grammar.adjust(logits)
        token_ids, confidence = choose_tokens(state, inputs, logits)
        if self.rows is not None and choices is not None:
            self.rows.revise(token_ids, confidence, choices)
        if self.grammar is not None:
            self.grammar.revise(token_ids, logits, _again(state, inputs))
        return token_ids, confidence


@dataclass(frozen=True)
class ControlledRow:
    """One row of a round or prefill: its controls, None where it has none, what it remembers, its grammar."""

    controls: Controls | None = None
    history: History | None = None
    matcher: Matcher | None = None


def make_controls(
    rows: Sequence[ControlledRow], widths: Sequence[int], vocab_size: int, device: torch.device | str
) -> RoundControls | None:
    """The controls of R rows, or None where no row has any.

    Args:
        rows: R rows.
        widths: R counts of query tokens.
        vocab_size: V.
        device: where the rounds run.
    """
    controlled = [
        (index, controls, row.history or History())
        for index, row in enumerate(rows)
        if (controls := _without_grammars_part(row)) is not None and controls.concerns_choice
    ]
    starts = starts_of(widths)
    grammar = [
        GrammarRow(
            index, starts[index], widths[index], row.matcher, bool(row.controls and row.controls.commits_by_prefix)
        )
        for index, row in enumerate(rows)
        if row.matcher is not None
    ]
    tops = [
        (index, row.controls.num_top_logprobs)
        for index, row in enumerate(rows)
        if row.controls is not None and row.controls.wants_logprobs
    ]
    if not (controlled or grammar or tops):
        return None
    return RoundControls(
        rows=ControlRows(controlled, widths, vocab_size, device) if controlled else None,
        grammar=GrammarRows(grammar, vocab_size, device) if grammar else None,
        logprobs=LogprobRows.of(tops, widths, device),
    )


def _without_grammars_part(row: ControlledRow) -> Controls | None:
    """A row's controls; how far its block is committed is its grammar's to say, if it has one."""
    if row.controls is None or row.matcher is None:
        return row.controls
    return replace(row.controls, commits_by_prefix=False)


def choose_controlled_seeds(
    logits: Tensor,
    policies: Sequence[DecodePolicy],
    positions: Tensor,
    mask_token_id: int,
    controls: RoundControls | None,
) -> tuple[Tensor, RoundLogprobs | None]:
    """Pick the token after each prompt, as `choose_seeds` does, under the rows' controls.

    Args:
        logits: `[R, V]` float, changed in place where rows have controls.
        policies: R policies.
        positions: `[R]` int64, absolute position of the token to choose.
        mask_token_id: never chosen.
        controls: of R rows of width 1.
    """
    if controls is None:
        return choose_seeds(logits, policies, positions, mask_token_id), None
    raw = None if controls.logprobs is None else controls.logprobs.raw(logits)
    choices = None if controls.rows is None else Choices(positions[controls.rows.rows])
    if controls.rows is not None and choices is not None:
        controls.rows.adjust(logits, choices)
    if controls.grammar is not None:
        controls.grammar.adjust_seeds(logits)
    seed_ids = choose_seeds(logits, policies, positions, mask_token_id)
    if controls.rows is not None and choices is not None:
        controls.rows.revise(seed_ids, torch.zeros_like(seed_ids, dtype=torch.float64), choices)
    if controls.logprobs is None or raw is None:
        return seed_ids, None
    of = controls.logprobs
    return seed_ids, log_probabilities(of.rows, of.num_tops, raw, seed_ids[of.index, None])


def _again(state: BlockState, inputs: RoundInputs) -> Callable[[Tensor, int], int]:
    """The choice of one query token from other logits, with the row's own sampling and randomness."""
    sampling = sampling_rows(state, inputs) if inputs.layout.may_sample else None

    def again(logits: Tensor, token: int) -> int:
        own = None if sampling is None else _one_row(sampling, token)
        chosen, _ = choose_token(logits, excluded_token_id=state.mask_token_id, sampling=own, needs_confidence=False)
        return int(chosen.item())

    return again


def _one_row(sampling: SamplingRows, row: int) -> SamplingRows:
    one = slice(row, row + 1)
    return SamplingRows(
        temperature=sampling.temperature[one],
        top_k=sampling.top_k[one],
        top_p=sampling.top_p[one],
        min_p=sampling.min_p[one],
        uniform=sampling.uniform[one],
    )
