"""`auto` in the scheduler: what the controller is told, and how its choices reach rows and device.

Every tensor-parallel rank has to run the same rounds, and their clocks differ: the first rank decides, the others are
told, over SGLang's CPU group, before a round whose number all ranks agree on.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from dlm_sglang.decode.auto.assign import Others
from dlm_sglang.decode.auto.controller import AutoController, Decision, Load, Reason
from dlm_sglang.decode.auto.report import report_of
from dlm_sglang.decode.auto.round_time import RoundShape
from dlm_sglang.decode.auto.row import AutoRow, allowed_lengths
from dlm_sglang.decode.state import BlockState
from dlm_sglang.params import GenerationMode
from dlm_sglang.seams.request import RequestState

# While no request is under `auto`, what is learnt for the next one comes from every so many rounds and blocks: it costs
# each round of everybody else.
LEARN_EVERY = 4
# Fields of a decision that stand before its block lengths when ranks are told.
_NUM_FIXED = 3


class AutoRounds:
    """Chooses the block lengths of a worker's rows under `auto`, and learns from its rounds."""

    def __init__(self, max_block_length: int) -> None:
        self.controller = AutoController(max_block_length)
        self._has_rows = False
        self._num_rounds = self._num_fixed_blocks = 0
        self._changes: list[tuple[int, int, bool]] = []

    def admit(self, state: RequestState) -> None:
        """A prefill of the request runs: it begins with a block of one position."""
        if state.policy.mode is not GenerationMode.AUTO:
            return
        if state.auto is None:
            state.auto = AutoRow(allowed_lengths(state.policy.block_length))
            state.reports["auto"] = partial(report_of, state.auto, self.controller)
        state.auto.restart()

    def choose(self, batch: Any) -> None:
        """Choose block lengths before a decode round; called once for each round, on every rank."""
        rows = {row: req.dlm.auto for row, req in enumerate(batch.reqs) if req.dlm.auto is not None}
        self._has_rows = bool(rows)
        if not rows:
            return
        ours = list(rows.values())
        is_due = self.controller.is_due(ours, has_changed=batch.spec_info.layout is None)
        if not is_due and not any(row.is_new for row in ours):
            return
        may_grow = _has_room(batch)
        if not is_due and not may_grow:
            return
        decision = self._decide(batch, ours, may_grow=may_grow) if is_due else None
        numbers = list(rows)
        self._changes = [
            (numbers[number], ours[number].target, is_resized)
            for number, is_resized in self.controller.apply(ours, decision)
        ]

    def write(self, state: BlockState, batch: Any) -> None:
        """Bring what `choose` changed to the device, before the round that it was chosen for."""
        if not self._changes:
            return
        rows, lengths, is_resized = (list(column) for column in zip(*self._changes, strict=True))
        self._changes = []
        index = torch.tensor(rows, pin_memory=state.device.type == "cuda").to(state.device, non_blocking=True)
        state.retarget(batch.req_pool_indices[index], batch.seq_lens[index], lengths, is_resized)

    def account(self, row: AutoRow, *, is_denoise: bool, accept_len: int) -> int:
        """A round of the row was processed: learn from its block; the positions that the row had in the round."""
        width, block_length = row.processed(is_denoise=is_denoise)
        if block_length:
            self.controller.observe_block(row, block_length, accept_len)
        return width

    def observe_fixed_block(self, block_length: int, accept_len: int) -> None:
        """A verified block of a request with a fixed block length was processed."""
        self._num_fixed_blocks += 1
        if self._has_rows or self._num_fixed_blocks % LEARN_EVERY == 0:
            self.controller.observe_block(None, block_length, accept_len)

    def observe_round(self, shape: RoundShape, seconds: float) -> None:
        """A decode round was processed."""
        self._num_rounds += 1
        if self._has_rows or self._num_rounds % LEARN_EVERY == 0:
            self.controller.observe_round(shape, seconds)
        self.controller.times.last_s = seconds

    def _decide(self, batch: Any, rows: list[AutoRow], *, may_grow: bool) -> Decision:
        group = get_parallel().tp_group
        if group.world_size == 1:
            return self.controller.decide(_load_of(batch, rows, may_grow=may_grow))
        told = torch.zeros(_NUM_FIXED + len(rows), dtype=torch.int64)
        if group.rank_in_group == 0:
            decision = self.controller.decide(_load_of(batch, rows, may_grow=may_grow))
            told[:] = torch.tensor([decision.reason, decision.newcomer, decision.rounds, *decision.block_lengths])
        torch.distributed.broadcast(told, src=group.ranks[0], group=group.cpu_group)
        reason, newcomer, rounds, *lengths = told.tolist()
        return Decision(tuple(lengths), Reason(reason), newcomer, rounds)


def _load_of(batch: Any, rows: list[AutoRow], *, may_grow: bool) -> Load:
    states: list[RequestState] = [req.dlm for req in batch.reqs]
    fixed = [state for state in states if state.auto is None]
    others = Others(
        num_tokens=sum(state.width for state in fixed),
        gain=sum(state.stats.tokens_per_forward or 1.0 for state in fixed),
    )
    num_kv_tokens = sum(req.kv.kv_committed_len for req in batch.reqs)
    return Load(rows, len(states), others, num_kv_tokens, may_grow)


def _has_room(batch: Any) -> bool:
    """Whether KV slots are there for the longest block of every row, old prefixes evicted for them if need be."""
    allocator = batch.token_to_kv_pool_allocator
    at_most = len(batch.reqs) * (2 * batch.spec_info.max_block_length + allocator.page_size)
    if allocator.available_size() >= at_most:
        return True
    needed = 0
    for req in batch.reqs:
        state = req.dlm
        longest = state.width if state.auto is None else max(state.width, state.auto.lengths[-1])
        reach = req.kv.kv_committed_len + state.num_pending_tokens + longest + allocator.page_size
        needed += max(0, reach - req.kv.kv_allocated_len)
    return bool(
        allocator.check_decode_capacity(
            num_tokens=needed, tree_cache=batch.tree_cache, requests=batch.reqs, spec_algorithm=batch.spec_algorithm
        )
    )
