"""Latency budgets in the scheduler: times of requests, and how a block's effort reaches the device.

As with `auto`, the first tensor-parallel rank chooses by its clock and tells the others.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from dlm_sglang.decode.auto.round_time import RoundTimes
from dlm_sglang.decode.budget import BudgetBounds, BudgetRow, Effort
from dlm_sglang.decode.state import BlockState
from dlm_sglang.seams.request import RequestState


class BudgetRounds:
    """Chooses what the blocks of requests with a budget may take."""

    def __init__(self, bounds: BudgetBounds, times: RoundTimes) -> None:
        self._bounds = bounds
        self._times = times
        self._changes: dict[int, Effort] = {}

    def admit(self, req: Any, state: RequestState) -> None:
        """A prefill of the request runs."""
        policy = state.policy
        if policy.latency_budget_ms is None:
            return
        if state.budget is None:
            state.budget = BudgetRow(
                budget_s=policy.latency_budget_ms / 1e3,
                arrived_s=req.time_stats.scheduler_recv_time,
                block_length=policy.block_length,
                max_new_tokens=policy.max_new_tokens,
                asked=Effort(policy.max_denoising_steps, policy.confidence_threshold),
                bounds=self._bounds,
            )
            state.reports["latency_budget"] = partial(_report, state.budget)
        # Admission writes the policy as it was asked for.
        state.budget.now = state.budget.asked
        state.budget.interrupted()

    def choose(self, batch: Any) -> None:
        """Choose the effort of blocks that begin; called once before each decode round, on every rank."""
        due = {row: req for row, req in enumerate(batch.reqs) if req.dlm.budget is not None and req.dlm.budget.is_due}
        if not due:
            return
        efforts = self._told(list(due.values()))
        for (row, req), effort in zip(due.items(), efforts, strict=True):
            if req.dlm.budget.give(effort):
                self._changes[row] = effort

    def write(self, state: BlockState, batch: Any) -> None:
        """Bring what `choose` changed to the device."""
        if not self._changes:
            return
        rows, efforts = list(self._changes), list(self._changes.values())
        self._changes = {}
        index = torch.tensor(rows, pin_memory=state.device.type == "cuda").to(state.device, non_blocking=True)
        steps = [effort.max_denoising_steps for effort in efforts]
        state.set_effort(batch.req_pool_indices[index], steps, [effort.confidence_threshold for effort in efforts])

    def _told(self, reqs: list[Any]) -> list[Effort]:
        """The first rank's choice."""
        group = get_parallel().tp_group
        told = torch.zeros((len(reqs), 2), dtype=torch.float64)
        if group.rank_in_group == 0:
            now_s = time.perf_counter()
            efforts = [req.dlm.budget.choose(now_s, len(req.output_ids), self._times.last_s) for req in reqs]
            if group.world_size == 1:
                return efforts
            for row, effort in enumerate(efforts):
                threshold = effort.confidence_threshold
                told[row, 0], told[row, 1] = effort.max_denoising_steps, math.nan if threshold is None else threshold
        torch.distributed.broadcast(told, src=group.ranks[0], group=group.cpu_group)
        return [Effort(int(steps), None if math.isnan(threshold) else threshold) for steps, threshold in told.tolist()]


def _report(budget: BudgetRow) -> dict[str, int | float | bool | None]:
    return budget.report(time.perf_counter() - budget.arrived_s)
