"""Offline compilation: resources and loops of a small kernel, without a GPU."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from dlm_kernels.offline import compile_kernel
from dlm_kernels.testing.block_attention_variants import Variant
from dlm_kernels.testing.plan_and_merge_variants import merge

pytest.importorskip("triton")


def test_a_compiled_kernel_shows_its_resources_and_its_loop() -> None:
    # In a process of its own: the compiler's libraries stay out of the other tests' one.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        compiled = pool.submit(merge(Variant(max_row_len=1)).spec.compile).result()
    assert compiled.name == "merge_cuts_kernel"
    assert 8 < compiled.n_regs <= 255
    assert compiled.n_spills == 0 and compiled.stack_bytes == 0
    (loop,) = compiled.inner_loops
    # 8 parts a trip, each with two exponentials for at least one row a thread.
    assert loop.count("MUFU.EX2") >= 16 and loop.count("LDG") >= 24
    assert loop.histogram().total() == loop.num_instructions == len(loop.instructions)
    assert compiled.blocks_per_sm() >= 1


def test_a_forgotten_argument_is_named() -> None:
    from dlm_kernels.ops.block_attention.plan_kernel import schedule_kernel

    with pytest.raises(ValueError, match=r"missing \['program_begin_ptr', .*unknown \['no_such'\]"):
        compile_kernel(schedule_kernel, {"no_such": "i32"}, {})
