"""Block attention compiled for sm_90 on a machine without a GPU: registers, shared memory and pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from dlm_kernels.offline import OfflineKernel
from dlm_kernels.testing.block_attention_variants import Variant, all_variants, shipped
from dlm_kernels.testing.compile_spec import CompileSpec
from dlm_kernels.testing.plan_and_merge_variants import merge, schedule, tile_plan

from tests.kernels.recorded import assert_as_recorded

pytest.importorskip("triton")

FP8 = torch.float8_e4m3fn
# One of each kind; `test_variant_record.py` applies the same gates to the record of all of them.
VARIANTS = [
    *(Variant(max_row_len=length) for length in (1, 8, 16, 32)),
    Variant(max_row_len=32, page_size=64),
    Variant(deterministic=True),
    Variant(kv_dtype=FP8, max_row_len=1),
    Variant(kv_dtype=FP8, max_row_len=32),
    Variant(head_dim=64, max_row_len=1, page_size=64),
    Variant(head_dim=256, max_row_len=32),
    Variant(torch.float32, torch.float32),
]


MERGES = [
    merge(Variant(head_dim=64)),
    merge(Variant(deterministic=True), has_scale=True),
    merge(Variant(head_dim=256)),
    merge(Variant(head_dim=256, deterministic=True)),
]
PLANS = [tile_plan(8, 64, 64), tile_plan(16, 1024, 64), schedule(2, 8, 1024), schedule(1, 0, 1024)]
OTHERS = {each.name: each for each in (*MERGES, *PLANS)}


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    # Processes of their own also keep the compiler's libraries out of the other tests' one.
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8), get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def compiled(workers: ProcessPoolExecutor) -> dict[Variant, OfflineKernel]:
    specs = [shipped(variant).spec for variant in VARIANTS]
    return dict(zip(VARIANTS, workers.map(CompileSpec.compile, specs), strict=True))


@pytest.fixture(scope="module")
def others(workers: ProcessPoolExecutor) -> dict[str, OfflineKernel]:
    specs = [each.spec for each in OTHERS.values()]
    return dict(zip(OTHERS, workers.map(CompileSpec.compile, specs), strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_keeps_to_its_gates(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    each = shipped(variant)
    assert each.gates.failures(each.measure(compiled[variant])) == []


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_compiles_to_what_is_recorded(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    assert_as_recorded(shipped(variant), compiled[variant])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.dtype != torch.float32], ids=str)
def test_the_loop_without_a_mask_compares_nothing_per_score(
    variant: Variant, compiled: dict[Variant, OfflineKernel]
) -> None:
    unmasked, masked = [loop for loop in compiled[variant].inner_loops if loop.count("HGMMA", "HMMA")]
    scores_per_thread = variant.config.block_m * variant.config.block_n // (32 * variant.config.num_warps)
    assert unmasked.count("FSEL") < scores_per_thread <= masked.count("FSEL", "FSETP", "ISETP")
    # One exponential a score, and one a row for the running maximum.
    assert scores_per_thread < unmasked.count("MUFU.EX2") <= scores_per_thread + variant.config.block_m // 16 * 4


@pytest.mark.parametrize("name", OTHERS)
def test_the_launches_around_it_keep_to_their_gates_and_record(name: str, others: dict[str, OfflineKernel]) -> None:
    each = OTHERS[name]
    assert each.gates.failures(each.measure(others[name])) == []
    assert_as_recorded(each, others[name])


@pytest.mark.parametrize("name", [each.name for each in MERGES])
def test_the_merge_loads_several_parts_before_it_uses_the_first(name: str, others: dict[str, OfflineKernel]) -> None:
    assert max(loop.count("LDG") for loop in others[name].inner_loops) >= 8


def test_variants_have_names_of_their_own() -> None:
    names = [str(variant) for variant in all_variants()]
    assert len(names) == len(set(names)) and set(map(str, VARIANTS)) <= set(names)
