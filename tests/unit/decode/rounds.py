"""Drives the engine's rounds on a plain model without SGLang: a batch of rows, recomputed from scratch each round."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from dlm_sglang.decode.auto.row import AutoRow
from dlm_sglang.decode.buckets import Bucket, bucket_of, make_buckets, pad_layout
from dlm_sglang.decode.controlled import ControlledRow, choose_controlled_seeds, make_controls
from dlm_sglang.decode.controls import Controls, History, history_of
from dlm_sglang.decode.grammar import Matcher
from dlm_sglang.decode.layout import make_layout
from dlm_sglang.decode.plan_cpu import plan_round_on_cpu
from dlm_sglang.decode.policy import DecodePolicy
from dlm_sglang.decode.round import RoundInputs, advance_round, plan_round
from dlm_sglang.decode.state import BlockState
from dlm_sglang.decode.stats import DecodeStats
from dlm_sglang.decode.watch import make_watch, provisional_block
from dlm_sglang.reference.sequence import TriModeModel


@dataclass
class Row:
    """One request: `tokens` are cached, `output` is what was emitted.

    `blocks` is what a watched row's stream tells, `auto` its block lengths where they change.
    """

    policy: DecodePolicy
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    stats: DecodeStats = field(default_factory=DecodeStats)
    is_finished: bool = False
    controls: Controls | None = None
    matcher: Matcher | None = None
    history: History | None = None
    logprobs: list[float] = field(default_factory=list)

    @property
    def controlled(self) -> ControlledRow:
        return ControlledRow(self.controls, self.history, self.matcher)

    is_watched: bool = False
    blocks: list[dict[str, object]] = field(default_factory=list)
    auto: AutoRow | None = None

    def emit(self, token_ids: list[int]) -> None:
        for token_id in token_ids:
            self.output.append(token_id)
            if self.matcher is not None:
                self.matcher.accept_token(token_id)
            if token_id in self.policy.stop_ids or len(self.output) >= self.policy.max_new_tokens:
                self.is_finished = True
                return


def run_rows(
    model: TriModeModel,
    rows: list[Row],
    context_length: int,
    max_block_length: int = 32,
    *,
    padded: bool = False,
    overlapped: bool = False,
    lengths: random.Random | None = None,
) -> None:
    """Decode all rows to their end in one running batch.

    Args:
        model: the model.
        rows: the requests.
        context_length: positions of a sequence.
        max_block_length: longest block.
        padded: rounds are padded to buckets, as captured graphs are.
        overlapped: a row stays in the batch for one round after its end, as in SGLang's overlapped loop.
        lengths: draws block lengths of rows with `auto`, often in the middle of a block.
    """
    # Slot 0 is padding's, as in SGLang.
    state = BlockState(
        len(rows) + 3,
        max_block_length,
        mask_token_id=model.config.mask_token_id,
        context_length=context_length,
    )
    buckets = make_buckets(len(rows), max_block_length, 1 << 20) if padded else ()
    for slot, row in enumerate(rows, start=1):
        _prefill(model, state, slot, row)
    lingering: list[int] = []
    while True:
        live = [slot for slot, row in enumerate(rows, start=1) if not row.is_finished]
        if not live:
            return
        in_batch = sorted({*live, *lingering}) if overlapped else live
        if lengths is not None:
            _retarget(state, {slot: rows[slot - 1] for slot in in_batch}, lengths)
        _round(model, state, in_batch, {slot: rows[slot - 1] for slot in in_batch}, context_length, buckets)
        lingering = live


def _forward(model: TriModeModel, tokens: list[int], kv_limit: list[int], *, use_lora: bool = False) -> torch.Tensor:
    """Logits `[T, V]` of the last `len(kv_limit)` tokens, causal before them."""
    total, new = len(tokens), len(kv_limit)
    limits = torch.tensor([*range(1, total - new + 1), *kv_limit])
    mask = (torch.arange(total)[None] < limits[:, None])[None]
    with torch.no_grad():
        if not use_lora:
            logits, _ = model.forward(torch.tensor([tokens]), torch.arange(total)[None], mask, None)
            return logits[0, total - new :]
        _, past = model.forward(
            torch.tensor([tokens[:-new]]), torch.arange(total - new)[None], mask[:, : total - new, : total - new], None
        )
        logits, _ = model.forward(
            torch.tensor([tokens[-new:]]), torch.arange(total - new, total)[None], mask[:, -new:], past, use_lora=True
        )
        return logits[0]


def _prefill(model: TriModeModel, state: BlockState, slot: int, row: Row) -> None:
    row.tokens = list(row.prompt)
    position = torch.tensor([len(row.prompt)])
    logits = _forward(model, row.tokens, [len(row.prompt)])
    vocab_size = logits.shape[1]
    if row.controls is not None:
        row.history = history_of(row.controls, row.output, vocab_size, "cpu")
    controls = make_controls([row.controlled], [1], vocab_size, "cpu")
    seed, logprobs = choose_controlled_seeds(logits, [row.policy], position, state.mask_token_id, controls)
    if row.policy.seeded_blocks:
        row.emit(seed.tolist())
        row.logprobs += logprobs.chosen[0].tolist() if logprobs is not None else []
        if controls is not None and controls.rows is not None:
            controls.rows.remember(seed[:, None], torch.ones(1, dtype=torch.int64))
    state.admit(torch.tensor([slot]), [row.policy], [len(row.output)], seed, [len(row.prompt)])


def _retarget(state: BlockState, rows: dict[int, Row], rng: random.Random) -> None:
    """Give some rows another block length, as `seams/auto.py` does it."""
    changes = [
        (slot, length, row.auto.retarget(length))
        for slot, row in rows.items()
        if row.auto is not None and row.auto.is_settled and rng.random() < 0.4
        if (length := rng.choice(row.auto.lengths)) != row.auto.target
    ]
    if changes:
        slots, new, is_resized = (list(column) for column in zip(*changes, strict=True))
        seq_lens = torch.tensor([len(rows[slot].tokens) for slot in slots])
        state.retarget(torch.tensor(slots), seq_lens, new, is_resized)


def _round(
    model: TriModeModel,
    state: BlockState,
    slots: list[int],
    rows: dict[int, Row],
    context_length: int,
    buckets: tuple[Bucket, ...],
) -> None:
    autos = [rows[slot].auto for slot in slots]
    chosen = [
        rows[slot].policy.block_length if auto is None else auto.launch()
        for slot, auto in zip(slots, autos, strict=True)
    ]
    layout = make_layout([rows[slot].policy for slot in slots], "cpu", chosen)
    widths = layout.widths.tolist()
    seq_lens = [len(rows[slot].tokens) for slot in slots]
    may_cut = any(length + width > context_length for length, width in zip(seq_lens, widths, strict=True))
    may_cut = may_cut or any(auto is not None for auto in autos)
    if buckets:
        bucket = bucket_of(layout, buckets)
        assert bucket is not None
        layout, may_cut = pad_layout(layout, bucket), True
        slots = slots + [0] * (layout.num_rows - len(slots))
        seq_lens = seq_lens + [0] * (layout.num_rows - len(seq_lens))
    controls = make_controls([rows[slot].controlled for slot in slots if slot], widths, model.config.vocab_size, "cpu")
    if controls is not None:
        controls.fill(state, torch.tensor(slots), torch.tensor(seq_lens))
    on_gpu, on_cpu = (
        plan(state, layout, torch.tensor(slots), torch.tensor(seq_lens), may_cut=may_cut)
        for plan in (plan_round, plan_round_on_cpu)
    )
    _assert_same_plan(on_gpu, on_cpu)
    inputs = on_gpu if buckets else on_cpu
    if controls is not None:
        controls.begin(state, inputs)
    is_padding = torch.zeros(layout.num_tokens, dtype=torch.bool) if inputs.is_padding is None else inputs.is_padding
    # What a padding token predicts must not matter.
    logits = torch.randn(layout.num_tokens, model.config.vocab_size, dtype=torch.double)
    begin = 0
    for slot, width in zip(slots, widths, strict=False):
        num_real = int((~is_padding[begin : begin + width]).sum())
        if num_real:
            ids = inputs.input_ids[begin : begin + num_real].tolist()
            use_lora = inputs.draft_rows is not None and bool(inputs.draft_rows[begin])
            limits = inputs.kv_limit[begin : begin + num_real].tolist()
            tokens = rows[slot].tokens + ids
            logits[begin : begin + num_real] = _forward(model, tokens, limits, use_lora=use_lora)
        begin += width
    inputs_by_row = inputs.input_ids[:begin].split(widths)
    outputs = advance_round(state, inputs, logits, controls)
    watch = make_watch([rows[slot].is_watched for slot in slots[: len(widths)]], "cpu")
    blocks = [] if watch is None else watch.look(state, torch.tensor(slots)).tolist()
    looked = dict(zip(watch.rows if watch else (), blocks, strict=True))
    for index, (slot, input_ids) in enumerate(zip(slots, inputs_by_row, strict=False)):
        row, accepted = rows[slot], int(outputs.accept_lens[index])
        is_denoise = outputs.is_denoise is not None and bool(outputs.is_denoise[index])
        if row.auto is not None:
            row.auto.processed(is_denoise=is_denoise)
        if row.is_finished:
            continue
        if index in looked and is_denoise and accepted == 0:
            row.blocks.append(provisional_block(looked[index], row.policy, len(row.output)))
        row.stats.count_round(is_denoise=is_denoise, accept_len=accepted)
        row.emit(outputs.token_ids[index, :accepted].tolist())
        if outputs.logprobs is not None and index in outputs.logprobs.rows:
            row.logprobs += outputs.logprobs.chosen[outputs.logprobs.rows.index(index), :accepted].tolist()
        assert not is_denoise or accepted == 0 or row.is_finished, "scratch KV would be committed"
        row.tokens += input_ids[:accepted].tolist()
        assert int(outputs.new_seq_lens[index]) == len(row.tokens)


def _assert_same_plan(one: RoundInputs, other: RoundInputs) -> None:
    """Every tensor of two plans of the same round."""
    for field_ in fields(RoundInputs):
        ours, theirs = getattr(one, field_.name), getattr(other, field_.name)
        if field_.name == "is_masked":
            continue  # a CPU's alone
        if isinstance(ours, Tensor):
            assert ours.dtype == theirs.dtype, field_.name
            assert torch.equal(ours, theirs), field_.name
        elif isinstance(ours, tuple):
            assert all(torch.equal(mine, yours) for mine, yours in zip(ours, theirs, strict=True)), field_.name
        else:
            assert ours is theirs, field_.name
