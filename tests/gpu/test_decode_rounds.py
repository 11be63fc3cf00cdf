"""Decode rounds on a GPU: the CPU's tokens, without a host read, and captured in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from dlm_sglang.decode.buckets import bucket_of, make_buckets, pad_layout
from dlm_sglang.decode.layout import make_layout
from dlm_sglang.decode.policy import DecodePolicy
from dlm_sglang.decode.round import RoundOutputs, advance_round, plan_round
from dlm_sglang.decode.state import BlockState
from tests.unit.decode.policies import policies_of

VOCAB, MASK, CONTEXT, NUM_ROUNDS = 4096, 100, 512, 10
FIELDS: tuple[dict[str, object], ...] = (
    {"generation_mode": "autoregressive"},
    {"generation_mode": "self_speculation", "block_length": 16},
    {"generation_mode": "diffusion", "block_length": 16},
    {"generation_mode": "diffusion", "confidence_threshold": None, "max_denoising_steps": 3, "seeded_blocks": False},
)


def _policies(temperature: float) -> list[DecodePolicy]:
    return policies_of(FIELDS * 3, temperature, top_p=0.95, max_new_tokens=200)


@contextmanager
def _no_syncs() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _state(policies: list[DecodePolicy], device: str) -> tuple[BlockState, torch.Tensor, torch.Tensor]:
    num_rows = len(policies)
    state = BlockState(num_rows + 1, 32, mask_token_id=MASK, context_length=CONTEXT, device=device)
    slots = torch.arange(1, num_rows + 1, device=device)
    seq_lens = torch.full((num_rows,), 20, device=device)
    state.admit(slots, policies, [1] * num_rows, torch.full((num_rows,), 5, device=device), [20] * num_rows)
    return state, slots, seq_lens


def _logits(num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(num_tokens, VOCAB, generator=generator) * 4 for _ in range(NUM_ROUNDS)]


def _equal(one: RoundOutputs, other: RoundOutputs) -> bool:
    lens = one.accept_lens.cpu()
    counted = torch.arange(one.token_ids.shape[1]) < lens[:, None]
    same_ids = one.token_ids.cpu()[counted].equal(other.token_ids.cpu()[counted])
    return lens.equal(other.accept_lens.cpu()) and same_ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rounds_equal_the_cpus_and_never_wait(temperature: float) -> None:
    policies = _policies(temperature)
    layouts = {device: make_layout(policies, device) for device in ("cpu", "cuda")}
    logits = _logits(layouts["cpu"].num_tokens)
    outputs: dict[str, list[RoundOutputs]] = {}
    for device, layout in layouts.items():
        state, slots, seq_lens = _state(policies, device)
        there = [one.to(device) for one in logits]
        outputs[device] = []
        for number, one in enumerate(there):
            # The first round compiles.
            with _no_syncs() if device == "cuda" and number > 0 else nullcontext():
                inputs = plan_round(state, layout, slots, seq_lens, may_cut=True)
                outputs[device].append(advance_round(state, inputs, one))
            seq_lens = outputs[device][-1].new_seq_lens
    for on_cpu, on_gpu in zip(outputs["cpu"], outputs["cuda"], strict=True):
        assert _equal(on_cpu, on_gpu)


def test_other_block_lengths_and_effort_are_written_without_waiting() -> None:
    policies = _policies(0.0)
    states = {}
    for device in ("cpu", "cuda"):
        state, slots, seq_lens = _state(policies, device)
        with _no_syncs() if device == "cuda" else nullcontext():
            # Fields take turns in fours: every fourth row is autoregressive, so its block can be resized.
            state.retarget(slots[::4], seq_lens[::4], [16, 8, 32], [True, False, True])
            state.set_effort(slots[2::4], [3, 2, 5], [0.7, None, 0.5])
        states[device] = state
    for name in ("canvas", "is_masked", "progress", "policy_ints"):
        assert getattr(states["cuda"], name).cpu().equal(getattr(states["cpu"], name)), name
    on_gpu, on_cpu = states["cuda"].policy_floats.cpu(), states["cpu"].policy_floats
    assert on_gpu.nan_to_num(-1.0).equal(on_cpu.nan_to_num(-1.0))


def test_captured_padded_rounds_equal_the_cpus() -> None:
    policies = _policies(0.0)
    layout = make_layout(policies, "cuda")
    bucket = bucket_of(layout, make_buckets(len(policies), 32, 1 << 10))
    assert bucket is not None
    padded = pad_layout(layout, bucket)
    state, slots, seq_lens = _state(policies, "cuda")
    static_slots = torch.nn.functional.pad(slots, (0, padded.num_rows - len(policies)))
    static_lens = torch.nn.functional.pad(seq_lens, (0, padded.num_rows - len(policies)))
    static_logits = torch.zeros(padded.num_tokens, VOCAB, device="cuda")
    saved = [table.clone() for table in (state.canvas, state.is_masked, state.progress)]

    def body() -> RoundOutputs:
        inputs = plan_round(state, padded, static_slots, static_lens, may_cut=True)
        return advance_round(state, inputs, static_logits)

    body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = body()
    for table, value in zip((state.canvas, state.is_masked, state.progress), saved, strict=True):
        table.copy_(value)

    cpu_state, cpu_slots, cpu_lens = _state(policies, "cpu")
    cpu_layout = make_layout(policies, "cpu")
    num_rows = len(policies)
    for one in _logits(cpu_layout.num_tokens):
        static_logits[: cpu_layout.num_tokens].copy_(one)
        graph.replay()
        expected = advance_round(cpu_state, plan_round(cpu_state, cpu_layout, cpu_slots, cpu_lens, may_cut=True), one)
        got = RoundOutputs(
            captured.token_ids[:num_rows, : cpu_layout.max_width],
            captured.accept_lens[:num_rows],
            captured.new_seq_lens[:num_rows],
            None,
        )
        assert _equal(expected, got)
        cpu_lens = expected.new_seq_lens
        static_lens[:num_rows].copy_(captured.new_seq_lens[:num_rows])
