"""What the scheduler chooses for rows while they decode: block lengths under `auto`, effort under a latency budget."""

from __future__ import annotations

import time
from typing import Any

from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.budget import BudgetBounds
from dlm_sglang.decode.state import BlockState
from dlm_sglang.params import GenerationMode
from dlm_sglang.seams.auto import AutoRounds
from dlm_sglang.seams.budget import BudgetRounds
from dlm_sglang.seams.request import RequestState


class Choices:
    """Chooses before a round, is told of it afterwards; one for a worker."""

    def __init__(self, max_block_length: int, bounds: BudgetBounds) -> None:
        self._auto = AutoRounds(max_block_length)
        self._budgets = BudgetRounds(bounds, self._auto.controller.times)
        self._processed_at_s: float | None = None

    def admit(self, req: Any, state: RequestState) -> None:
        """A prefill of the request runs, the first one or one after a retraction."""
        self._auto.admit(state)
        self._budgets.admit(req, state)

    def choose(self, batch: Any) -> None:
        """Choose for the coming round of the batch; called once for each round, on every rank."""
        self._auto.choose(batch)
        self._budgets.choose(batch)

    def write(self, state: BlockState, batch: Any) -> None:
        """Bring what was chosen to the device, before the round that it was chosen for."""
        self._auto.write(state, batch)
        self._budgets.write(state, batch)

    def account(self, state: RequestState, *, is_denoise: bool, accept_len: int) -> int:
        """A round of the request was processed; returns the positions that it had in the round."""
        if state.budget is not None:
            state.budget.processed(time.perf_counter(), is_denoise=is_denoise)
        if state.auto is None:
            block_length = state.policy.block_length
            if state.policy.mode is GenerationMode.SELF_SPECULATION and not is_denoise:
                self._auto.observe_fixed_block(block_length, accept_len)
            return block_length
        return self._auto.account(state.auto, is_denoise=is_denoise, accept_len=accept_len)

    def processed(self, shape: RoundShape | None) -> None:
        """A result was processed, of a decode round if it has a shape.

        The time since the result before it is what the round took: launch, forward and processing where rounds run
        one after another, the slower of device and host where they overlap.
        """
        now_s = time.perf_counter()
        if self._processed_at_s is not None:
            took_s = now_s - self._processed_at_s
            if shape is None:
                self._auto.controller.arrivals.observe_prefill(took_s)
            else:
                self._auto.observe_round(shape, took_s)
        self._processed_at_s = now_s
