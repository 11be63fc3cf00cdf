"""Where a decode round's time goes: forward, host, reads; each mode beside plain SGLang on the same weights."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from operator import truediv
from pathlib import Path

import numpy as np

from dlm_sglang.bundled.tasks import held_out_prompts
from dlm_sglang.measure.load import Fields, bodies_of, run_load
from dlm_sglang.measure.modes import PLAIN, SERVER_FLAGS, SINGLE_MODES, command_of, machine
from dlm_sglang.measure.server import running_server
from dlm_sglang.setting_table import BUNDLED_PATH

TOKENS = 48


@dataclass(frozen=True)
class Round:
    """One line of a round trace (`dlm_sglang/seams/trace.py`)."""

    kind: str
    start_s: float
    end_s: float
    forward_s: float
    rows: int
    query_tokens: int
    host_reads: list[str] | None


@dataclass(frozen=True)
class EngineCell:
    """Medians over the decode rounds of a full batch.

    Attributes:
        round_ms: from one round's launch to the next one's.
        forward_ms: inside the model; on a GPU the launches only.
        host_ms: the rest of the round.
        reads_per_round: places where the host waits for the device, counted in a run of its own.
        query_tokens_per_token: query tokens that rounds computed for one emitted token.
        tok_s: emitted tokens per second of the whole load, prefills included.
        over_plain: `tok_s` over plain SGLang's in the same turn, median of the turns: machines drift, turns are short.
        low, high: quartiles of these ratios.
    """

    name: str
    concurrency: int
    round_ms: float
    forward_ms: float
    host_ms: float
    reads_per_round: float
    tokens_per_forward: float
    query_tokens_per_token: float
    tok_s: float
    over_plain: float
    low: float
    high: float


def measure_engine(
    model_path: Path, flags: Sequence[str], modes: Sequence[str], concurrencies: Sequence[int], repeats: int
) -> Iterator[EngineCell]:
    """Run the modes at every concurrency beside plain SGLang; servers take turns within a concurrency."""
    prompts = [messages for _, messages, _ in held_out_prompts(64)]
    common = ["--model-path", str(model_path), "--max-running-requests", str(max(concurrencies)), *flags]
    ours = [*common, "--speculative-algorithm", "DLM"]
    body = {"max_tokens": TOKENS, "ignore_eos": True}
    runs: dict[str, tuple[Sequence[str], Fields]] = {PLAIN: (common, body)}
    runs |= {name: (ours, body | dict(SINGLE_MODES[name])) for name in modes}
    reads = {
        name: _reads_per_round(arguments, bodies_of(prompts, 16, [fields]))
        for name, (arguments, fields) in runs.items()
    }
    with _traced_server(common, "plain") as plain, _traced_server(ours, "dlm") as dlm:
        for concurrency in concurrencies:
            count = max(16, 3 * concurrency)
            loads = {
                name: (plain if name == PLAIN else dlm, bodies_of(prompts, count, [fields]))
                for name, (_, fields) in runs.items()
            }
            samples = _alternate(loads, concurrency, repeats)
            yield from (_cell(name, concurrency, samples[name], samples[PLAIN], reads[name]) for name in runs)


@dataclass(frozen=True)
class _Traced:
    url: str
    file: Path

    def flush(self) -> None:
        """Have the record written: the scheduler does it when it runs again after a pause."""
        time.sleep(0.2)
        body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        run_load(self.url, [body], 1)

    def decode_records(self, load: Sequence[Fields], concurrency: int) -> tuple[list[Round], float, int]:
        """The decode rounds of one load, its tokens per second and the tokens that decode forwards emitted."""
        self.flush()
        before = len(self._lines())
        result = run_load(self.url, load, concurrency)
        self.flush()
        records = [Round(**json.loads(line)) for line in self._lines()[before:]]
        decodes = [record for record in records if record.kind == "decode"]
        # A request's first token comes from its prefill.
        return decodes, result.tok_s, result.output_tokens - len(load)

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []


@contextmanager
def _traced_server(arguments: Sequence[str], name: str, *, reads: bool = False) -> Iterator[_Traced]:
    with tempfile.TemporaryDirectory(prefix="dlm-trace-") as folder:
        file = Path(folder) / "rounds.jsonl"
        trace = {"DLM_ROUND_TRACE": str(file), "DLM_ROUND_TRACE_READS": "on" if reads else "off"}
        saved = {key: os.environ.get(key) for key in trace}
        os.environ.update(trace)
        try:
            with running_server(arguments, name) as url:
                yield _Traced(url, file)
        finally:
            for key, value in saved.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


def _reads_per_round(arguments: Sequence[str], load: Sequence[Fields]) -> float:
    with _traced_server(arguments, "reads", reads=True) as server:
        records, _, _ = server.decode_records(load, 8)
        return sum(len(record.host_reads or ()) for record in records) / len(records)


class _Samples:
    """What the repeats of one mode at one concurrency gave."""

    def __init__(self) -> None:
        self.round_s: list[float] = []
        self.forward_s: list[float] = []
        self.tok_s: list[float] = []
        self.query_tokens = self.rows = self.tokens = 0

    def add(self, records: list[Round], tok_s: float, num_tokens: int, concurrency: int) -> None:
        """Take one repeat's rounds."""
        self.tok_s.append(tok_s)
        self.tokens += num_tokens
        self.query_tokens += sum(record.query_tokens for record in records)
        self.rows += sum(record.rows for record in records)
        for one, after in itertools.pairwise(records):
            # Full batches only, and no prefill or pause between the two.
            gap_s, run_s = after.start_s - one.end_s, one.end_s - one.start_s
            if one.rows == after.rows == concurrency and gap_s < run_s:
                self.round_s.append(gap_s + run_s)
                self.forward_s.append(one.forward_s)


def _alternate(
    loads: Mapping[str, tuple[_Traced, list[Fields]]], concurrency: int, repeats: int
) -> dict[str, _Samples]:
    """Run every load once to warm up, then in turns, so that a drift of the machine favours nobody.

    Each turn has an order of its own: a load after a heavy one runs on a processor that is warm.
    """
    order = random.Random(0)
    samples = {name: _Samples() for name in loads}
    for server, load in loads.values():
        server.decode_records(load[: 2 * concurrency], concurrency)
    for _ in range(repeats):
        for name in order.sample(list(loads), len(loads)):
            server, load = loads[name]
            samples[name].add(*server.decode_records(load, concurrency), concurrency)
    return samples


def _cell(name: str, concurrency: int, samples: _Samples, plain: _Samples, reads: float) -> EngineCell:
    pairs = zip(samples.round_s, samples.forward_s, strict=True)
    low, middle, high = map(float, np.quantile(list(map(truediv, samples.tok_s, plain.tok_s)), (0.25, 0.5, 0.75)))
    return EngineCell(
        name=name,
        concurrency=concurrency,
        round_ms=round(1e3 * statistics.median(samples.round_s), 3),
        forward_ms=round(1e3 * statistics.median(samples.forward_s), 3),
        host_ms=round(1e3 * statistics.median(round_s - forward_s for round_s, forward_s in pairs), 3),
        reads_per_round=round(reads, 2),
        tokens_per_forward=round(samples.tokens / samples.rows, 2),
        query_tokens_per_token=round(samples.query_tokens / samples.tokens, 2),
        tok_s=round(statistics.median(samples.tok_s), 1),
        over_plain=round(middle, 3),
        low=round(low, 3),
        high=round(high, 3),
    )


def main() -> int:
    """`python -m dlm_sglang.measure.engine`, behind `make bench-engine`."""
    parser = argparse.ArgumentParser(prog="make bench-engine", description=__doc__)
    parser.add_argument("--model-path", type=Path, default=BUNDLED_PATH, help="checkpoint; default: the bundled one")
    parser.add_argument(
        "--modes", nargs="+", choices=SINGLE_MODES, default=list(SINGLE_MODES), help="beside plain SGLang"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 128], help="requests at a time")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every mode and of plain SGLang")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("flags", nargs="*", help="more flags for both servers, behind --")
    arguments = parser.parse_args()
    flags = arguments.flags or SERVER_FLAGS
    cells = []
    names = [field.name for field in fields(EngineCell)][2:]
    print(f"{'what':<18} {'concurrent':>10} " + " ".join(f"{name:>{max(len(name), 9)}}" for name in names))
    runs = measure_engine(arguments.model_path, flags, arguments.modes, arguments.concurrency, arguments.repeats)
    for cell in runs:
        values = asdict(cell)
        row = " ".join(f"{values[name]:>{max(len(name), 9)}}" for name in names)
        print(f"{cell.name:<18} {cell.concurrency:>10} {row}", flush=True)
        cells.append(values)
    if arguments.out:
        report = {"command": command_of("dlm_sglang.measure.engine"), **machine(), "cells": cells}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
