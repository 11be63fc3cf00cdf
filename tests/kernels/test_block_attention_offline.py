"""Block attention compiled for sm_90 on a machine without a GPU: registers, shared memory and pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from dlm_kernels.offline import MAX_SHARED_BYTES, OfflineKernel
from dlm_kernels.testing.block_attention_variants import (
    Variant,
    all_variants,
    compile_attention,
    compile_merge,
    compile_plan_kernels,
)

pytest.importorskip("triton")

FP8 = torch.float8_e4m3fn
# One of each kind; `kernels/benchmarks/compile_variants.py` applies the same gates to all of them.
VARIANTS = [
    *(Variant(max_row_len=length) for length in (1, 8, 16, 32)),
    Variant(max_row_len=8, page_size=16),
    Variant(max_row_len=32, page_size=64),
    Variant(deterministic=True),
    Variant(kv_dtype=FP8, max_row_len=1),
    Variant(kv_dtype=FP8, max_row_len=32),
    Variant(head_dim=64, max_row_len=1, page_size=64),
    Variant(head_dim=256, max_row_len=16),
    Variant(head_dim=256, max_row_len=32),
    Variant(torch.float32, torch.float32),
]


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    # Processes of their own also keep the compiler's libraries out of the other tests' one.
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), 8), get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def compiled(workers: ProcessPoolExecutor) -> dict[Variant, OfflineKernel]:
    return dict(zip(VARIANTS, workers.map(compile_attention, VARIANTS), strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_fits_the_multiprocessor(variant: Variant, compiled: dict[Variant, OfflineKernel]) -> None:
    kernel = compiled[variant]
    assert kernel.n_spills == 0 and kernel.stack_bytes == 0
    assert kernel.shared_bytes <= MAX_SHARED_BYTES
    assert kernel.blocks_per_sm() >= variant.config.programs_per_sm


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_k_and_v_are_prefetched_as_deep_as_the_stages_say(
    variant: Variant, compiled: dict[Variant, OfflineKernel]
) -> None:
    tile = (variant.config.block_n, variant.head_dim)
    buffers = [ring.num_buffers for ring in compiled[variant].pipeline_buffers if ring.shape == tile]
    # K and V of the loop without a mask, then of the loop with one.
    assert buffers == [variant.num_buffers] * 4


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.dtype != torch.float32], ids=str)
def test_the_loop_without_a_mask_compares_nothing_per_score(
    variant: Variant, compiled: dict[Variant, OfflineKernel]
) -> None:
    unmasked, masked = [loop for loop in compiled[variant].inner_loops if loop.count("HGMMA", "HMMA")]
    scores_per_thread = variant.config.block_m * variant.config.block_n // (32 * variant.config.num_warps)
    assert unmasked.count("FSEL") < scores_per_thread <= masked.count("FSEL", "FSETP", "ISETP")
    # One exponential a score, and one a row for the running maximum.
    assert scores_per_thread < unmasked.count("MUFU.EX2") <= scores_per_thread + variant.config.block_m // 16 * 4


@pytest.mark.parametrize("deterministic", [False, True])
def test_plan_kernels_compile(deterministic: bool, workers: ProcessPoolExecutor) -> None:
    for kernel in workers.submit(compile_plan_kernels, deterministic).result():
        assert kernel.n_spills == 0


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_merge_has_room_for_many_programs(head_dim: int, deterministic: bool, workers: ProcessPoolExecutor) -> None:
    kernel = workers.submit(compile_merge, Variant(head_dim=head_dim, deterministic=deterministic)).result()
    assert kernel.n_spills == 0 and kernel.blocks_per_sm() >= 2
    # The loads of several parts are under way before the first is used.
    assert kernel.inner_loops and max(loop.count("LDG") for loop in kernel.inner_loops) >= 8


def test_variants_have_names_of_their_own() -> None:
    names = [str(variant) for variant in all_variants()]
    assert len(names) == len(set(names)) and set(map(str, VARIANTS)) <= set(names)
