"""What options of a request cost, beside the same requests without them: `make bench-options`.

The grammar accepts every text, so that the answers stay what they are and only following it costs. Settings take turns
within a repetition.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.load import Fields, LoadResult, bodies_of, run_load
from dlm_sglang.measure.modes import SERVER_FLAGS, SINGLE_MODES, command_of, machine
from dlm_sglang.measure.server import running_server
from dlm_sglang.measure.table import render
from dlm_sglang.setting_table import BUNDLED_PATH

MAX_TOKENS = 96
NONE = "none"
OPTIONS: Mapping[str, Fields] = {
    NONE: {},
    "any text: regex": {"regex": "(.|\\n)*"},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "frequency_penalty": {"frequency_penalty": 0.1},
}


@dataclass(frozen=True)
class OptionCell:
    """One mode with one option, medians over repetitions.

    Attributes:
        tokens_per_forward: tokens over decode forwards.
        tok_s: of all requests together.
        tpf_ratio, tok_s_ratio: over the same mode without the option, of each repetition.
    """

    mode: str
    option: str
    concurrency: int
    tokens_per_forward: float
    tok_s: float
    tpf_ratio: float
    tok_s_ratio: float


def measure_options(url: str, concurrency: int, requests: int, repeats: int) -> list[OptionCell]:
    """Every mode with every option, one after another, each repetition in the other order."""
    prompts = [messages for _, messages, _ in held_out_prompts(64)]
    names = [(mode, option) for mode in SINGLE_MODES for option in OPTIONS]
    runs: dict[tuple[str, str], list[LoadResult]] = {name: [] for name in names}
    # The first repetition warms up, grammars among them, and is not counted.
    for repetition in range(repeats + 1):
        for mode, option in names if repetition % 2 else names[::-1]:
            fields = {**SINGLE_MODES[mode], **OPTIONS[option], "max_tokens": MAX_TOKENS}
            run = run_load(url, bodies_of(prompts, requests, [fields]), concurrency)
            if repetition:
                runs[mode, option].append(run)
    return [_cell(mode, option, concurrency, runs[mode, option], runs[mode, NONE]) for mode, option in names]


def _cell(
    mode: str, option: str, concurrency: int, runs: Sequence[LoadResult], without: Sequence[LoadResult]
) -> OptionCell:
    pairs = list(zip(runs, without, strict=True))
    return OptionCell(
        mode=mode,
        option=option,
        concurrency=concurrency,
        tokens_per_forward=round(statistics.median(_tokens_per_forward(run) for run in runs), 2),
        tok_s=round(statistics.median(run.tok_s for run in runs), 1),
        tpf_ratio=round(statistics.median(_tokens_per_forward(a) / _tokens_per_forward(b) for a, b in pairs), 3),
        tok_s_ratio=round(statistics.median(a.tok_s / b.tok_s for a, b in pairs), 3),
    )


def _tokens_per_forward(run: LoadResult) -> float:
    return run.num_block_tokens / run.num_forwards


def as_table(cells: Sequence[OptionCell]) -> str:
    """One line a cell."""
    rows = [
        (
            f"{cell.mode}, {cell.option}",
            str(cell.concurrency),
            f"{cell.tokens_per_forward:.2f}",
            f"{cell.tok_s:.0f}",
            f"{cell.tpf_ratio:.3f}",
            f"{cell.tok_s_ratio:.3f}",
        )
        for cell in cells
    ]
    return render(("mode and option", "requests", "TPF", "tok/s", "TPF ratio", "tok/s ratio"), rows)


def main() -> int:
    """Start a server, measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-options", description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="requests at a time")
    parser.add_argument("--requests", type=int, default=32, help="per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    server = ["--model-path", str(BUNDLED_PATH), "--speculative-algorithm", "DLM", *SERVER_FLAGS]
    cells: list[OptionCell] = []
    with running_server(server, "options") as url:
        for concurrency in arguments.concurrency:
            cells += measure_options(url, concurrency, arguments.requests, arguments.repeats)
    print(as_table(cells))
    if arguments.out is not None:
        command = command_of("dlm_sglang.measure.options")
        report = {"command": command, **machine(), "cells": [asdict(cell) for cell in cells]}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
