"""Token choice, unmasking, acceptance and rounds compiled for sm_90 on a machine without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from dlm_kernels.offline import OfflineKernel
from dlm_kernels.testing.compile_spec import CompileSpec
from dlm_kernels.testing.gates import passes_over_logits
from dlm_kernels.testing.unmask_specs import Variant, spec_of
from dlm_kernels.testing.unmask_variants import shipped

from tests.kernels.recorded import assert_as_recorded

pytest.importorskip("triton")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCANS = [
    *(Variant("scan", dtype, samples) for dtype in DTYPES for samples in (False, True)),
    Variant("scan", has_confidence=False),
]
OTHERS = [
    Variant("merge", is_by_row=True),
    *(Variant("merge", dtype, samples=True, is_by_row=True) for dtype in (torch.bfloat16, torch.float32)),
    *(Variant("verify", has_probs=probs) for probs in (False, True)),
    *(Variant("rejection", has_probs=probs, block_length=31) for probs in (False, True)),
    Variant("prefix", block_length=31),
    Variant("select"),
    *(Variant("block", block_length=length) for length in (32, 64)),
    *(Variant("advance", block_length=length) for length in (32, 64)),
    Variant("advance", has_confidence=False),
    Variant("uniform"),
    # The launcher compiles a vocabulary of one id in.
    *(Variant(kernel, samples=True, num_splits=1, ones=("vocab_size",)) for kernel in ("scan", "merge")),
]


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[Variant, OfflineKernel]]:
    variants = [*SCANS, *OTHERS]
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        yield dict(zip(variants, pool.map(CompileSpec.compile, map(spec_of, variants)), strict=True))


@pytest.mark.parametrize("variant", [*SCANS, *OTHERS], ids=str)
def test_a_variant_keeps_to_its_gates_and_its_record(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    each = shipped(variant)
    assert each.gates.failures(each.measure(compiled[variant])) == []
    assert_as_recorded(each, compiled[variant])


@pytest.mark.parametrize("variant", SCANS, ids=str)
def test_the_pass_over_logits_exchanges_nothing(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    loops = compiled[variant].inner_loops
    for loop in loops:
        assert loop.count("BAR", "SHFL") == 0
    if variant.samples:
        # The same scan with a second sum, for rows with a temperature; their other loops compare ids.
        greedy, tempered = passes_over_logits(compiled[variant])
        num_exponentials = [loop.count("MUFU") for loop in loops]
        assert sorted(num_exponentials) == [greedy.count("MUFU")] * 2 + [tempered.count("MUFU")] * 2


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
