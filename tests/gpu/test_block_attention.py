"""Compiled block attention against the float64 oracle, on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dlm_kernels.ops.block_attention import block_attention, make_plan
from dlm_kernels.testing.block_attention import Case, Inputs, Row, make_inputs
from dlm_kernels.testing.block_attention_gpu import CASES, check_case
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_float64(name: str, deterministic: bool) -> None:
    result = check_case(CASES[name], deterministic)
    assert result["passed"], result


def _run(inputs: Inputs, deterministic: bool) -> Tensor:
    plan = make_plan(*inputs.lengths, **inputs.bounds, deterministic=deterministic)
    return block_attention(inputs.q, inputs.k_pool, inputs.v_pool, plan, inputs.scale)


def test_deterministic_rows_do_not_depend_on_the_batch() -> None:
    inputs = make_inputs(CASES["bf16 page 1"], "cuda")
    together = _run(inputs, deterministic=True)
    begin = 0
    for row, length in enumerate(inputs.row_lens.tolist()):
        tokens, one = slice(begin, begin + length), slice(row, row + 1)
        begin += length
        if length == 0:
            continue
        alone = replace(
            inputs,
            q=inputs.q[tokens],
            row_lens=inputs.row_lens[one],
            kv_lens=inputs.kv_lens[one],
            kv_limit=inputs.kv_limit[tokens],
            slots=inputs.slots[one],
            max_row_len=length,
        )
        assert torch.equal(_run(alone, deterministic=True), together[tokens])


def test_a_captured_graph_follows_lengths_that_change_in_place() -> None:
    inputs = make_inputs(Case([Row(8, 500), Row(8, 900)], 32, 8, 128, dtype=torch.bfloat16), "cuda")
    _run(inputs, deterministic=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _run(inputs, deterministic=False)
    inputs.kv_limit -= 300
    inputs.kv_lens -= 300
    graph.replay()
    assert torch.equal(captured, _run(inputs, deterministic=False))


def test_nothing_waits_for_the_device() -> None:
    inputs = make_inputs(CASES["bf16 page 64"], "cuda")
    _run(inputs, deterministic=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _run(inputs, deterministic=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
