"""Token choice beside the chains of torch calls that it replaces: useful GB/s, and the share of the copy rate.

python kernels/benchmarks/bench_choose_token.py [--quick]

Useful bytes are the logits, read once. "chain" is argmax, softmax and gather on the logits as they are, the mask id
excluded; "sglang" the same on a float32 copy, as LowConfidence of SGLang 0.5.21 has it; "compiled" is torch.compile
of the chain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from dlm_kernels.ops.choose_token import SamplingRows, choose_token  # noqa: E402
from dlm_kernels.testing.unmask_gpu import MASK_TOKEN_ID, checks, make_sampling  # noqa: E402
from harness import (  # noqa: E402
    MIN_ROTATED_BYTES,
    copy_rate_gb_s,
    print_table,
    require_gpu,
    save_result,
    time_calls,
    timing_fields,
)

NAME = "choose_token"
DEVICE, VOCAB, DTYPE = "cuda", 131072, torch.bfloat16
ROWS, QUICK_ROWS = (1, 32, 128, 256, 512, 1024, 4096), (32, 256, 1024)
COLUMNS = ("impl", "rows", "median_ms", "spread_ms", "is_graph", "gb_s", "share_of_copy", "note")

Choice = Callable[[Tensor], tuple[Tensor, Tensor]]


def chain(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Argmax and softmax, eager, in the dtype of the logits."""
    allowed = logits.clone()
    allowed[:, MASK_TOKEN_ID] = float("-inf")
    token_ids = allowed.argmax(dim=-1)
    return token_ids, torch.softmax(logits, dim=-1).gather(1, token_ids[:, None])[:, 0]


def float32_chain(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The same on a float32 copy."""
    wide = logits.float()
    token_ids = wide.argmax(dim=-1)
    return token_ids, torch.softmax(wide, dim=-1).gather(1, token_ids[:, None])[:, 0]


@cache
def compiled_chain() -> Choice:
    """`chain` without its copy, compiled."""

    def body(logits: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.arange(logits.shape[1], device=logits.device)
        token_ids = logits.masked_fill(ids == MASK_TOKEN_ID, float("-inf")).argmax(dim=-1)
        return token_ids, torch.softmax(logits, dim=-1).gather(1, token_ids[:, None])[:, 0]

    return torch.compile(body, dynamic=True)


def kinds_of_rows(num_rows: int) -> dict[str, dict[str, object]]:
    """Options of our own op: greedy rows, and rows of each kind of sampling."""
    sampled = make_sampling(num_rows, DEVICE, filtered=False)
    ones = torch.ones(num_rows, device=DEVICE)
    plain = SamplingRows(ones, sampled.top_k, ones, ones * 0, sampled.uniform)
    top_p = SamplingRows(ones, sampled.top_k, ones * 0.95, ones * 0, sampled.uniform)
    half = torch.arange(num_rows, device=DEVICE) % 2 == 0
    return {
        "ours": {},
        "ours, tokens only": {"needs_confidence": False},
        "ours, half settled": {"is_settled": half},
        "ours, sampled": {"sampling": plain},
        "ours, top-p": {"sampling": top_p},
    }


def measure(num_rows: int, copy_gb_s: float, quick: bool) -> list[dict[str, object]]:
    """Every implementation on one number of rows, on data that no cache holds."""
    num_batches = max(2, -(-MIN_ROTATED_BYTES // (num_rows * VOCAB * DTYPE.itemsize)))
    batches = [torch.randn(num_rows, VOCAB, device=DEVICE, dtype=DTYPE) * 3 for _ in range(min(num_batches, 64))]
    options = kinds_of_rows(num_rows)
    choices: dict[str, Choice] = {
        name: partial(choose_token, excluded_token_id=MASK_TOKEN_ID, **each)  # type: ignore[arg-type]
        for name, each in options.items()
    }
    choices |= {"chain": chain, "sglang": float32_chain}
    if not quick:
        choices["compiled"] = compiled_chain()
    rows = []
    for name, choice in choices.items():
        row: dict[str, object] = {"impl": name, "rows": num_rows}
        try:
            timing = time_calls([partial(choice, batch) for batch in batches])
            gb_s = num_rows * VOCAB * DTYPE.itemsize / timing.median_ms / 1e6
            row |= {**timing_fields(timing), "gb_s": gb_s, "share_of_copy": gb_s / copy_gb_s}
        # A chain whose temporaries do not fit is a result, too.
        except RuntimeError as error:
            row["note"] = str(error).splitlines()[0][:80]
        rows.append(row)
    return rows


def check() -> list[dict[str, object]]:
    """Correctness, before anything is timed."""
    wanted = ("greedy", "draws", "random")
    return [call() for name, call in checks(DEVICE) if name.startswith(wanted)]


def run(quick: bool) -> list[dict[str, object]]:
    """Measure, print, save."""
    copy_gb_s = copy_rate_gb_s()
    rows = [row for count in (QUICK_ROWS if quick else ROWS) for row in measure(count, copy_gb_s, quick)]
    print_table(rows, COLUMNS)
    save_result(NAME, rows, copy_gb_s=copy_gb_s, vocab=VOCAB, dtype=str(DTYPE), quick=quick)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, nothing compiled")
    require_gpu()
    run(parser.parse_args().quick)
