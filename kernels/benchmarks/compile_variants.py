"""Compile every block-attention variant for sm_90, without a GPU, and print what each needs.

    python kernels/benchmarks/compile_variants.py [--filter TEXT]

Exits with 1 where a variant spills, does not fit, or lacks pipeline buffers: the gates of
`tests/kernels/test_block_attention_offline.py`, which compiles one variant of each kind.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dlm_kernels.offline import MAX_SHARED_BYTES
from dlm_kernels.testing.block_attention_variants import Variant, all_variants, compile_attention


def line_of(variant: Variant) -> tuple[str, bool]:
    """The line of a variant's table, and whether it passes."""
    kernel = compile_attention(variant)
    tile = (variant.config.block_n, variant.head_dim)
    buffers = {ring.num_buffers for ring in kernel.pipeline_buffers if ring.shape == tile}
    loop = kernel.inner_loops[0].num_instructions
    passed = (
        kernel.n_spills == 0
        and kernel.shared_bytes <= MAX_SHARED_BYTES
        and buffers == {variant.num_buffers}
        and kernel.blocks_per_sm() >= variant.config.programs_per_sm
    )
    text = (
        f"{variant!s:48} regs {kernel.n_regs:3} spills {kernel.n_spills} shared {kernel.shared_bytes:6} "
        f"buffers {sorted(buffers)} per SM {kernel.blocks_per_sm()} loop {loop}"
    )
    return text + ("" if passed else "  FAILED"), passed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="compile the variants whose name contains this")
    arguments = parser.parse_args()
    variants = [variant for variant in all_variants() if arguments.filter in str(variant)]
    num_failed = 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for text, passed in pool.map(line_of, variants):
            print(text, flush=True)
            num_failed += not passed
    print(f"{len(variants)} variants, {num_failed} failed")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
