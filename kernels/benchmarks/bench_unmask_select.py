"""A denoising step on blocks, the acceptance of drafts and a whole round, beside the same in eager torch.

python kernels/benchmarks/bench_unmask_select.py [--quick]

All move a few kilobytes; what counts is the time of the launches, and that nothing waits for the host.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from dlm_kernels.ops.accept_prefix import accept_prefix  # noqa: E402
from dlm_kernels.ops.accept_prefix import reference as accept_reference  # noqa: E402
from dlm_kernels.ops.advance_rows import advance_rows  # noqa: E402
from dlm_kernels.ops.advance_rows import reference as advance_reference  # noqa: E402
from dlm_kernels.ops.unmask_select import reference, unmask_block  # noqa: E402
from dlm_kernels.testing.advance_rows import make_round, make_state  # noqa: E402
from dlm_kernels.testing.unmask_block import Block, make_inputs  # noqa: E402
from dlm_kernels.testing.unmask_gpu import checks  # noqa: E402
from harness import print_table, require_gpu, save_result, time_calls, timing_fields  # noqa: E402

NAME = "unmask_select"
DEVICE, BLOCK_LENGTH = "cuda", 32
REQUESTS, QUICK_REQUESTS = (1, 8, 32, 128, 512), (1, 32, 128)
COLUMNS = ("impl", "op", "requests", "median_ms", "spread_ms", "is_graph", "note")


@cache
def compiled_step() -> Callable[..., object]:
    """The reference of `unmask_block`, compiled."""
    return torch.compile(reference.unmask_block, dynamic=True)


def low_confidence_step(canvas: Tensor, chosen: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    """The selection of SGLang 0.5.21's LowConfidence as torch calls, with its read of the result by the host."""
    is_masked = canvas == -1
    sure = torch.where(is_masked, confidence, float("-inf"))
    filled = sure > threshold
    if int(filled.sum()) == 0:
        filled.view(-1)[sure.argmax()] = True
    return torch.where(filled, chosen, canvas)


def measure(num_requests: int, quick: bool) -> list[dict[str, object]]:
    """Every implementation for one number of requests."""
    rng = random.Random(num_requests)
    blocks = [Block.drawn(BLOCK_LENGTH, 4, rng) for _ in range(num_requests)]
    inputs = make_inputs(blocks, device=DEVICE)
    drafts = torch.randint(0, 2, (num_requests, BLOCK_LENGTH), device=DEVICE)
    targets = torch.cat([drafts, drafts[:, :1]], dim=1)
    counts = torch.full((num_requests,), BLOCK_LENGTH, device=DEVICE)
    step = (inputs["canvas"], inputs["chosen"], inputs["confidence"], 0.9)
    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("ours", "unmask_block"): partial(unmask_block, **inputs),
        ("chain", "unmask_block"): partial(reference.unmask_block, **inputs),
        ("sglang", "unmask_block"): partial(low_confidence_step, *step),
        ("ours", "accept_prefix"): partial(accept_prefix, drafts, targets, counts),
        ("chain", "accept_prefix"): partial(accept_reference.accept_prefix, drafts, targets, counts),
    }
    state = make_state(num_requests, BLOCK_LENGTH, 4, rng, DEVICE)
    round_inputs = {
        name: value.to(DEVICE) for name, value in make_round(num_requests, num_requests, BLOCK_LENGTH, rng).items()
    }
    # Every call goes on where the one before stopped: the work does not depend on the state.
    calls["ours", "advance_rows"] = partial(advance_rows, state, **round_inputs)
    calls["chain", "advance_rows"] = partial(advance_reference.advance_rows, state, **round_inputs)
    if not quick:
        calls["compiled", "unmask_block"] = partial(compiled_step(), **inputs)
    rows = []
    for (name, op), call in calls.items():
        timing = timing_fields(time_calls([call] * 16))
        rows.append({"impl": name, "op": op, "requests": num_requests, **timing})
    return rows


def check() -> list[dict[str, object]]:
    """Correctness, before anything is timed."""
    wanted = ("unmask", "prefix", "rejection")
    return [call() for name, call in checks(DEVICE) if name.startswith(wanted)]


def run(quick: bool) -> list[dict[str, object]]:
    """Measure, print, save."""
    rows = [row for count in (QUICK_REQUESTS if quick else REQUESTS) for row in measure(count, quick)]
    print_table(rows, COLUMNS)
    save_result(NAME, rows, block_length=BLOCK_LENGTH, quick=quick)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, nothing compiled")
    require_gpu()
    run(parser.parse_args().quick)
