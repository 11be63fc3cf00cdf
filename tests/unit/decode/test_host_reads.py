"""A decode round reads nothing from the device: each read would stop the host until everything before it has run."""

from __future__ import annotations

import random

import pytest
import torch

from dlm_sglang.decode.buckets import bucket_of, make_buckets, pad_layout
from dlm_sglang.decode.layout import RoundLayout, make_layout
from dlm_sglang.decode.policy import DecodePolicy
from dlm_sglang.decode.round import advance_round, plan_round
from dlm_sglang.decode.state import BlockState
from dlm_sglang.decode.watch import make_watch
from dlm_sglang.seams.host_reads import HostReads
from tests.unit.decode.policies import policies_of

VOCAB, MASK, CONTEXT = 50, 40, 256
FIELDS: dict[str, list[dict[str, object]]] = {
    "autoregressive": [{"generation_mode": "autoregressive"}],
    "self_speculation": [{"generation_mode": "self_speculation", "block_length": 16}],
    "iterated drafts": [{"generation_mode": "self_speculation", "block_length": 8, "draft_threshold": 0.5}],
    "diffusion": [{"generation_mode": "diffusion", "block_length": 16}],
    "unseeded, even schedule": [
        {"generation_mode": "diffusion", "confidence_threshold": None, "max_denoising_steps": 3, "seeded_blocks": False}
    ],
}
FIELDS["mixed"] = [fields for (fields,) in FIELDS.values()]


def _policies(names: list[dict[str, object]], temperature: float) -> list[DecodePolicy]:
    return policies_of(names * 2, temperature, top_p=0.9, max_new_tokens=60)


def _run(policies: list[DecodePolicy], layout: RoundLayout, num_rounds: int, *, may_cut: bool) -> list[str]:
    """The host reads of some rounds on random logits."""
    num_rows = len(policies)
    state = BlockState(num_rows + 1, 32, mask_token_id=MASK, context_length=CONTEXT)
    slots, seq_lens = torch.arange(1, num_rows + 1), torch.full((num_rows,), 20)
    state.admit(slots, policies, [1] * num_rows, torch.full((num_rows,), 5), seq_lens.tolist())
    slots = torch.nn.functional.pad(slots, (0, layout.num_rows - num_rows))
    seq_lens = torch.nn.functional.pad(seq_lens, (0, layout.num_rows - num_rows))
    watch = make_watch([row % 2 == 0 for row in range(num_rows)], "cpu")
    assert watch is not None
    generator = torch.Generator().manual_seed(random.randrange(1 << 30))
    with HostReads() as reads:
        for _ in range(num_rounds):
            inputs = plan_round(state, layout, slots, seq_lens, may_cut=may_cut)
            logits = torch.randn(layout.num_tokens, VOCAB, generator=generator) * 3
            seq_lens = advance_round(state, inputs, logits).new_seq_lens
            watch.look(state, slots)
    return reads.places


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", FIELDS)
def test_rounds_read_nothing_on_the_host(name: str, temperature: float) -> None:
    policies = _policies(FIELDS[name], temperature)
    assert _run(policies, make_layout(policies, "cpu"), 12, may_cut=False) == []
    assert _run(policies, make_layout(policies, "cpu"), 12, may_cut=True) == []


def test_padded_rounds_read_nothing_on_the_host() -> None:
    policies = _policies(FIELDS["mixed"], 0.8)
    layout = make_layout(policies, "cpu")
    bucket = bucket_of(layout, make_buckets(len(policies), 32, 1 << 10))
    assert bucket is not None
    assert _run(policies, pad_layout(layout, bucket), 12, may_cut=True) == []


def test_other_block_lengths_and_effort_are_written_without_a_read() -> None:
    policies = _policies([{"generation_mode": "auto"}, {"generation_mode": "diffusion"}], 0.0)
    num_rows = len(policies)
    state = BlockState(num_rows + 1, 32, mask_token_id=MASK, context_length=CONTEXT)
    slots, seq_lens = torch.arange(1, num_rows + 1), torch.full((num_rows,), 20)
    state.admit(slots, policies, [1] * num_rows, torch.full((num_rows,), 5), seq_lens.tolist())
    with HostReads() as reads:
        state.retarget(slots[::2], seq_lens[::2], [16, 8], [True, False])
        state.set_effort(slots[1::2], [3, 2], [0.7, None])
    assert reads.places == []


def _bool(tensor: torch.Tensor) -> object:
    return bool(tensor[0])


READS = {
    "item": lambda tensor: tensor[0].item(),
    "tolist": lambda tensor: tensor.tolist(),
    "bool": _bool,
    "int": lambda tensor: int(tensor[1]),
    "iteration": lambda tensor: list(tensor),
    "nonzero": lambda tensor: tensor.nonzero(),
    "flags as index": lambda tensor: tensor[tensor > 1],
    "write by flags": lambda tensor: tensor.clone().__setitem__(tensor > 1, 0),
    "cpu": lambda tensor: tensor.cpu(),
    "numpy": lambda tensor: tensor.numpy(),
    "equal": lambda tensor: torch.equal(tensor, tensor),
}


@pytest.mark.parametrize("name", READS)
def test_counter_sees_each_way_to_read(name: str) -> None:
    tensor = torch.arange(4)
    with HostReads() as reads:
        READS[name](tensor)
    assert len(reads.places) == 1, reads.places
    assert "test_host_reads.py" in reads.places[0]


def test_counter_lets_pass_what_stays_on_the_device() -> None:
    tensor = torch.arange(4)
    with HostReads() as reads:
        torch.where(tensor > 1, tensor, 0).cumsum(0)[torch.tensor([1, 2])].unbind(0)
    assert reads.places == []
    assert not torch.Tensor.tolist.__qualname__.startswith("HostReads"), "the methods were put back"
