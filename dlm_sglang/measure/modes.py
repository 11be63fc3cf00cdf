"""Throughput of the modes beside plain SGLang: both servers up, same weights, runs interleaved."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.load import Fields, LoadResult, bodies_of, run_load
from dlm_sglang.measure.server import running_server

Say = Callable[[str], None]
PLAIN = "plain SGLang, AR"
FIXED_TOKENS = 48
ANSWER_TOKENS = 128
SELF_SPECULATION: Fields = {"generation_mode": "self_speculation"}
DIFFUSION: Fields = {"generation_mode": "diffusion", "confidence_threshold": 0.9}
AUTOREGRESSIVE: Fields = {"generation_mode": "autoregressive"}
AUTO: Fields = {"generation_mode": "auto"}
SINGLE_MODES: Mapping[str, Fields] = {
    "autoregressive": AUTOREGRESSIVE,
    "self_speculation": SELF_SPECULATION,
    "diffusion": DIFFUSION,
}
# Of a server of the bundled checkpoint whose KV pool no load of ours fills.
SERVER_FLAGS = ("--dtype", "float32", "--mem-fraction-static", "0.1", "--max-total-tokens", "32768")
MODES: dict[str, Sequence[Fields]] = {
    "autoregressive": [AUTOREGRESSIVE],
    "diffusion": [DIFFUSION],
    "self_speculation": [SELF_SPECULATION],
    "auto": [AUTO],
    "mixed, a third each": [AUTOREGRESSIVE, DIFFUSION, SELF_SPECULATION],
}


@dataclass(frozen=True)
class Cell:
    """One row of the table: medians over repeats.

    Attributes:
        ratio: `tok_s` over the baseline's of the same concurrency, median of the per-repeat ratios.
        tokens_per_forward: tokens over decode forwards, 0 where the server does not tell.
    """

    workload: str
    name: str
    concurrency: int
    tok_s: float
    ratio: float
    tokens_per_forward: float


def compare_modes(model_path: Path, concurrencies: Sequence[int], requests: int, repeats: int, say: Say) -> list[Cell]:
    """Measure both workloads at every concurrency.

    "fixed": every request runs to the same length whatever it says, our AR over plain SGLang's AR.
    "answers": natural answers with their end tokens, each mode over our AR.
    """
    prompts = [messages for _, messages, _ in held_out_prompts(64)]
    common = ["--model-path", str(model_path), *SERVER_FLAGS, "--max-running-requests", "64"]
    cells: list[Cell] = []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(running_server(common, "plain"))
        ours = stack.enter_context(running_server([*common, "--speculative-algorithm", "DLM"], "dlm"))
        for concurrency in concurrencies:
            count = max(requests, 2 * concurrency)
            fixed = {"max_tokens": FIXED_TOKENS, "ignore_eos": True}
            runs = {
                PLAIN: (plain, bodies_of(prompts, count, [fixed])),
                "autoregressive": (ours, bodies_of(prompts, count, [fixed | dict(AUTOREGRESSIVE)])),
            }
            cells += _measure("fixed", runs, concurrency, repeats, PLAIN, say)
            answers = {
                name: (ours, bodies_of(prompts, count, [{"max_tokens": ANSWER_TOKENS, **extra} for extra in fields]))
                for name, fields in MODES.items()
            }
            cells += _measure("answers", answers, concurrency, repeats, "autoregressive", say)
    return cells


def _measure(
    workload: str,
    runs: dict[str, tuple[str, list[Fields]]],
    concurrency: int,
    repeats: int,
    baseline: str,
    say: Say,
) -> list[Cell]:
    results: dict[str, list[LoadResult]] = {name: [] for name in runs}
    for url, bodies in runs.values():
        run_load(url, bodies[: 2 * concurrency], concurrency)
    for repeat in range(repeats):
        # Alternate the order, so that a drift of the machine favours nobody.
        names = list(runs) if repeat % 2 == 0 else list(runs)[::-1]
        for name in names:
            url, bodies = runs[name]
            results[name].append(run_load(url, bodies, concurrency))
    cells = []
    for name, measured in results.items():
        ratios = [a.tok_s / b.tok_s for a, b in zip(measured, results[baseline], strict=True)]
        forwards = sum(result.num_forwards for result in measured)
        tokens = sum(result.num_block_tokens for result in measured)
        cell = Cell(
            workload,
            name,
            concurrency,
            round(statistics.median(result.tok_s for result in measured), 1),
            round(statistics.median(ratios), 3),
            round(tokens / forwards, 2) if forwards else 0.0,
        )
        say(row_of(cell))
        cells.append(cell)
    return cells


def header() -> str:
    """Column heads of the table."""
    return f"{'workload':<9} {'what':<22} {'concurrent':>10} {'tok/s':>9} {'ratio':>7} {'tokens/forward':>15}"


def row_of(cell: Cell) -> str:
    """One line of the table."""
    per_forward = f"{cell.tokens_per_forward:.2f}" if cell.tokens_per_forward else "-"
    return (
        f"{cell.workload:<9} {cell.name:<22} {cell.concurrency:>10} {cell.tok_s:>9.1f} "
        f"{cell.ratio:>7.2f} {per_forward:>15}"
    )


def report(cells: Sequence[Cell], command: str) -> dict[str, object]:
    """The results with what they were measured on."""
    return {"command": command, **machine(), "cells": [asdict(cell) for cell in cells]}


def command_of(module: str) -> str:
    """The command that runs a module as this process was run, for reports; no path of this machine."""
    return " ".join(["python -m", module, *sys.argv[1:]])


def machine() -> dict[str, object]:
    """What a measurement ran on."""
    return {
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {name: metadata.version(name) for name in ("dlm-sglang", "sglang", "torch", "transformers")},
        "python": platform.python_version(),
    }


def write_report(path: Path, cells: Sequence[Cell], command: str) -> None:
    """Write `report` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report(cells, command), indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
