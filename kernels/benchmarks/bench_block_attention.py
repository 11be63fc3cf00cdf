"""Block attention beside what else the host has: useful GB/s, and the share of this machine's copy rate.

python kernels/benchmarks/bench_block_attention.py [--quick] [--tune]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from baselines_block_attention import BASELINES, Unavailable  # noqa: E402
from dlm_kernels.ops.block_attention import block_attention, launch, make_plan, plan  # noqa: E402
from dlm_kernels.ops.block_attention.plan import KernelPlan, TileConfig  # noqa: E402
from dlm_kernels.testing.block_attention import Case, Inputs, Row, make_inputs  # noqa: E402
from dlm_kernels.testing.block_attention_gpu import check_cases  # noqa: E402
from dlm_kernels.testing.tolerances import MAX_RELATIVE_ERROR, relative_error  # noqa: E402
from harness import (  # noqa: E402
    MIN_ROTATED_BYTES,
    copy_rate_gb_s,
    print_table,
    require_gpu,
    save_result,
    time_calls,
    timing_fields,
)

NAME = "block_attention"
DEVICE, DTYPE = "cuda", torch.bfloat16
# Compiled anew for every shape, half a minute each: not in a quick run.
SLOW_BASELINES = ("flex",)
COLUMNS = ("impl", "requests", "block", "prefix", "page", "median_ms", "spread_ms", "gb_s", "share_of_copy", "note")
REQUESTS_AND_PREFIXES = ((1, 1024), (1, 8192), (4, 2048), (4, 32768), (16, 2048), (16, 8192), (64, 2048), (64, 8192))
QUICK_REQUESTS_AND_PREFIXES = ((1, 1024), (1, 8192), (16, 2048), (64, 8192))
TUNED_BLOCKS, TUNED_REQUESTS_AND_PREFIXES = (1, 8, 16, 32), ((1, 8192), (16, 8192))
# Tile shapes that compile without spills in their loops, to be timed against the shipped ones, by packed rows.
CANDIDATES = {
    16: [TileConfig(16, 64, 4, 3, 3), TileConfig(16, 64, 4, 4, 2), TileConfig(16, 32, 4, 4, 3)],
    32: [TileConfig(32, 64, 4, 3, 2), TileConfig(32, 64, 4, 4, 2), TileConfig(32, 32, 4, 4, 2)],
    64: [TileConfig(64, 64, 4, 3, 2), TileConfig(64, 64, 8, 3, 1), TileConfig(64, 64, 4, 4, 1)],
    128: [TileConfig(128, 64, 8, 3, 1), TileConfig(128, 64, 8, 4, 1), TileConfig(128, 32, 8, 4, 2, 128)],
}


def grid(quick: bool) -> Iterator[tuple[int, int, int, int]]:
    """`(requests, block, prefix, page)` of NLD-8B shapes."""
    for requests, prefix in QUICK_REQUESTS_AND_PREFIXES if quick else REQUESTS_AND_PREFIXES:
        for block in (1, 8, 16, 32) if quick else (1, 8, 16, 32, 64):
            for page in (1, 64) if quick else (1, 32, 64):
                yield requests, block, prefix, page


def layers_of(inputs: Inputs) -> list[Inputs]:
    """The inputs with different keys and values, enough of them to defeat the L2 cache: layers of one forward."""
    kv_bytes = inputs.k_pool.nbytes + inputs.v_pool.nbytes
    num_layers = min(max(2, -(-MIN_ROTATED_BYTES // kv_bytes)), 64)
    others = (
        replace(inputs, k_pool=torch.randn_like(inputs.k_pool), v_pool=torch.randn_like(inputs.v_pool))
        for _ in range(num_layers - 1)
    )
    return [inputs, *others]


def useful_bytes(inputs: Inputs) -> int:
    """K and V of every row, queries and outputs, each once."""
    per_key = inputs.k_pool[0].nbytes + inputs.v_pool[0].nbytes
    return int(inputs.kv_lens.sum()) * per_key + 2 * inputs.q.numel() * inputs.q.element_size()


def ours(layers: list[Inputs], deterministic: bool = False) -> list[Callable[[], Tensor]]:
    """Calls of the kernel on every layer; they share one plan, as in a forward."""
    forward = make_plan(*layers[0].lengths, **layers[0].bounds, deterministic=deterministic, use_kernel=True)
    return [
        lambda layer=layer: block_attention(layer.q, layer.k_pool, layer.v_pool, forward, layer.scale)  # type: ignore[misc]
        for layer in layers
    ]


def plan_calls(inputs: Inputs) -> list[Callable[[], object]]:
    """Making the work list, which happens once a forward."""
    geometry = plan.Geometry(
        inputs.q.shape[1],
        inputs.k_pool.shape[1],
        inputs.q.shape[2],
        inputs.v_pool.shape[2],
        inputs.q.dtype,
        inputs.k_pool.dtype,
    )

    def call() -> None:
        forward = make_plan(*inputs.lengths, **inputs.bounds, use_kernel=True)
        assert isinstance(forward, KernelPlan)
        launch.make_work_list(forward, geometry)

    return [call] * 8


def layers_at(requests: int, block: int, prefix: int, page: int) -> list[Inputs]:
    """Layers of rows that all have the same shape; 32 query heads on 8 key heads, as NLD has."""
    rows = [Row(block, prefix, "bidirectional")] * requests
    case = Case(rows, 32, 8, 128, page_size=page, dtype=DTYPE, is_strided=False, poison=False)
    return layers_of(make_inputs(case, DEVICE))


def measure_point(
    requests: int, block: int, prefix: int, page: int, copy_gb_s: float, skip: tuple[str, ...] = ()
) -> list[dict[str, object]]:
    """All implementations at one shape."""
    layers = layers_at(requests, block, prefix, page)
    point = {"requests": requests, "block": block, "prefix": prefix, "page": page}
    results: list[dict[str, object]] = []

    def add(name: str, calls: list[Callable[[], Tensor]], note: str = "") -> None:
        timing = time_calls(calls)
        gb_s = useful_bytes(layers[0]) / timing.median_ms / 1e6
        results.append(
            {
                "impl": name,
                **point,
                **timing_fields(timing),
                "gb_s": gb_s,
                "share_of_copy": gb_s / copy_gb_s,
                "note": note,
            }
        )

    add("ours", ours(layers))
    add("ours-deterministic", ours(layers, deterministic=True))
    results.append({"impl": "plan", **point, **timing_fields(time_calls(plan_calls(layers[0])))})
    expected = ours(layers[:1])[0]()
    for name, factory in BASELINES.items():
        if name in skip:
            continue
        try:
            calls = [factory(layer) for layer in layers]
            error = relative_error(calls[0]().reshape(expected.shape), expected)
            is_same = error <= 2 * MAX_RELATIVE_ERROR[DTYPE]
            add(name, calls, "" if is_same else f"computes something else: error {error:.3g}")
        except Unavailable as reason:
            results.append({"impl": name, **point, "note": f"unavailable: {reason}"})
        # A baseline that fails must not take the others' numbers along.
        except Exception as error:
            results.append({"impl": name, **point, "note": f"failed: {type(error).__name__}: {error}"[:160]})
    return results


def tune(copy_gb_s: float) -> list[dict[str, object]]:
    """Candidate tile shapes at a large batch and at one request."""
    shipped = plan.tile_config
    results: list[dict[str, object]] = []
    for block, candidates in zip(TUNED_BLOCKS, CANDIDATES.values(), strict=True):
        for requests, prefix in TUNED_REQUESTS_AND_PREFIXES:
            for page in (1, 64):
                layers = layers_at(requests, block, prefix, page)
                for config in candidates:
                    plan.tile_config = lambda *_, config=config: config
                    timing = time_calls(ours(layers))
                    gb_s = useful_bytes(layers[0]) / timing.median_ms / 1e6
                    point = {"requests": requests, "block": block, "prefix": prefix, "page": page}
                    results.append(
                        {"impl": "candidate", **point, **timing_fields(timing), "gb_s": gb_s,
                         "share_of_copy": gb_s / copy_gb_s, "note": str(config)}
                    )  # fmt: skip
    plan.tile_config = shipped
    return results


def check() -> list[dict[str, object]]:
    """Correctness on this device, for `run_gpu.py`."""
    return check_cases()


def run(quick: bool) -> list[dict[str, object]]:
    """Measure the grid, print its table, write the result line; returns the rows."""
    copy_gb_s = copy_rate_gb_s()
    skip = SLOW_BASELINES if quick else ()
    rows = [row for shape in grid(quick) for row in measure_point(*shape, copy_gb_s, skip)]
    print_table(rows, COLUMNS)
    save_result(NAME, rows, copy_gb_s=copy_gb_s, quick=quick)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller grid")
    parser.add_argument("--tune", action="store_true", help="time candidate tile shapes instead")
    arguments = parser.parse_args()
    require_gpu()
    if arguments.tune:
        copy_gb_s = copy_rate_gb_s()
        rows = tune(copy_gb_s)
        print_table(rows, COLUMNS)
        save_result(f"{NAME}_tune", rows, copy_gb_s=copy_gb_s)
    else:
        run(arguments.quick)


if __name__ == "__main__":
    main()
