"""Token choice, unmasking, acceptance and rounds compiled for sm_90 on a machine without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from dlm_kernels.offline import OfflineKernel
from dlm_kernels.testing.unmask_variants import Variant, compile_variant

pytest.importorskip("triton")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCANS = [
    *(Variant("scan", dtype, samples) for dtype in DTYPES for samples in (False, True)),
    Variant("scan", has_confidence=False),
]
OTHERS = [
    Variant("merge"),
    *(Variant("merge", dtype, samples=True) for dtype in (torch.bfloat16, torch.float32)),
    *(Variant("verify", has_probs=probs) for probs in (False, True)),
    *(Variant("rejection", has_probs=probs) for probs in (False, True)),
    Variant("prefix"),
    Variant("select"),
    *(Variant("block", block_length=length) for length in (32, 64)),
    *(Variant("advance", block_length=length) for length in (32, 64)),
    Variant("advance", has_confidence=False),
    Variant("uniform"),
    # The launcher compiles a vocabulary of one id in.
    *(Variant(kernel, samples=True, ones=("vocab_size",)) for kernel in ("scan", "merge")),
]
# Above 14, instructions and not bytes would set the time of the pass on an H200.
MAX_INSTRUCTIONS_PER_LOGIT = 9.0
MAX_INSTRUCTIONS_PER_SAMPLED_LOGIT = 13.0


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[Variant, OfflineKernel]]:
    variants = [*SCANS, *OTHERS]
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        yield dict(zip(variants, pool.map(compile_variant, variants), strict=True))


@pytest.mark.parametrize("variant", [*SCANS, *OTHERS], ids=str)
def test_nothing_spills(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    kernel = compiled[variant]
    assert kernel.n_spills == 0 and kernel.stack_bytes == 0
    # Tiles stay in registers: shared memory holds what the warps exchange at the end.
    assert kernel.shared_bytes <= 1024


@pytest.mark.parametrize("variant", SCANS, ids=str)
def test_the_pass_over_logits_is_bound_by_memory(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    loops = sorted(compiled[variant].inner_loops, key=lambda loop: loop.num_instructions)
    per_lane = variant.logits_of_a_lane
    assert loops[0].num_instructions / per_lane <= MAX_INSTRUCTIONS_PER_LOGIT
    if variant.samples:
        # The same scan with a second sum, for rows with a temperature; their other loops compare ids.
        plain = sum(loop.count("MUFU") <= loops[0].count("MUFU") for loop in loops)
        sampled = [loop for loop in loops if loop.count("MUFU") > loops[0].count("MUFU")]
        assert plain == len(sampled) == 2
        assert sampled[0].num_instructions / per_lane <= MAX_INSTRUCTIONS_PER_SAMPLED_LOGIT
    for loop in loops:
        assert loop.count("BAR", "SHFL") == 0


@pytest.mark.parametrize("variant", SCANS, ids=str)
def test_lanes_read_sixteen_bytes_at_a_time(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    loop = min(compiled[variant].inner_loops, key=lambda loop: loop.num_instructions)
    loads = [each.opcode for each in loop.instructions if each.opcode.startswith("LDG")]
    assert len(loads) == variant.logits_of_a_lane * variant.dtype.itemsize / 16
    assert all(".128" in opcode for opcode in loads)


@pytest.mark.parametrize("variant", [each for each in SCANS if each.has_confidence], ids=str)
def test_one_exponential_per_logit(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    loop = min(compiled[variant].inner_loops, key=lambda loop: loop.num_instructions)
    # One more for every group of logits that lie side by side.
    assert loop.count("MUFU") / variant.logits_of_a_lane <= 1.0 + variant.dtype.itemsize / 16
