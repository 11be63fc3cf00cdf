"""Offline compilation: resources and loops of a small kernel, without a GPU."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from dlm_kernels.offline import compile_kernel  # noqa: E402


@triton.jit
def row_sum_kernel(out_ptr, x_ptr, num_columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, num_columns, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        total += tl.exp2(tl.load(x_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32))
    tl.store(out_ptr + tl.arange(0, BLOCK), total)


SIGNATURE = {"out_ptr": "*fp32", "x_ptr": "*bf16", "num_columns": "i32"}


def test_a_compiled_kernel_shows_its_resources_and_its_loop() -> None:
    compiled = compile_kernel(row_sum_kernel, SIGNATURE, {"BLOCK": 1024}, num_warps=4)
    assert compiled.name == "row_sum_kernel"
    assert 8 < compiled.n_regs <= 255
    assert compiled.n_spills == 0 and compiled.stack_bytes == 0
    # 8 numbers a thread and trip, each with one exponential.
    assert any(loop.count("MUFU.EX2") % 8 == 0 and loop.count("MUFU.EX2") > 0 for loop in compiled.inner_loops)
    assert all(loop.histogram().total() == loop.num_instructions for loop in compiled.inner_loops)
    assert compiled.blocks_per_sm() >= 1


def test_a_forgotten_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"missing \['BLOCK'\]"):
        compile_kernel(row_sum_kernel, SIGNATURE, {})
