"""`auto` beside every fixed setting that it may choose, on one server, at 1 to 64 requests: `make bench-auto`.

Settings take turns within a repetition, so that a drift of the machine favours nobody; every other repetition runs
backwards. The server keeps what it learnt from one measurement to the next, as any server does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dlm_sglang.measure import bench
from dlm_sglang.measure.drive import Pattern
from dlm_sglang.measure.grid import DecodeSetting
from dlm_sglang.measure.modes import SERVER_FLAGS, command_of, machine
from dlm_sglang.measure.prompts import load_prompts
from dlm_sglang.measure.server import running_server
from dlm_sglang.measure.store import Line, numbers_of, select
from dlm_sglang.measure.table import render
from dlm_sglang.setting_table import BUNDLED_PATH

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
AUTO = DecodeSetting("auto")
FIXED = (DecodeSetting("autoregressive"), *(DecodeSetting("self_speculation", length) for length in (8, 16, 32)))


@dataclass(frozen=True)
class Comparison:
    """One load.

    Attributes:
        tok_s: medians over repetitions, by setting.
        best_fixed: the fixed setting with the highest median.
        ratio: `auto` over it, median of the ratios of each repetition; two settings measured in turns.
        ratios: of each repetition.
    """

    concurrency: int
    tok_s: dict[str, float]
    best_fixed: str
    ratio: float
    ratios: tuple[float, ...]


def compare(lines: Sequence[Line]) -> list[Comparison]:
    """`auto` beside the best fixed setting at each load."""
    labels = [setting.label for setting in (*FIXED, AUTO)]
    found = []
    for concurrency in dict.fromkeys(_concurrency(line) for line in lines):
        runs = {label: _rates(select(lines, setting=label, concurrency=concurrency)) for label in labels}
        tok_s = {label: statistics.median(rates) for label, rates in runs.items()}
        best = max((setting.label for setting in FIXED), key=lambda label: tok_s[label])
        ratios = tuple(a / b for a, b in zip(runs[AUTO.label], runs[best], strict=True))
        found.append(Comparison(concurrency, tok_s, best, statistics.median(ratios), ratios))
    return found


def as_table(comparisons: Sequence[Comparison]) -> str:
    """Tokens per second of each setting at each load."""
    labels = list(comparisons[0].tok_s)
    rows = [
        (
            str(one.concurrency),
            *(f"{one.tok_s[label]:.0f}" for label in labels),
            one.best_fixed,
            f"{one.ratio:.3f}",
            f"{min(one.ratios):.3f}..{max(one.ratios):.3f}",
        )
        for one in comparisons
    ]
    return render(("requests", *labels, "best fixed", "auto/best", "by repetition"), rows)


def _concurrency(line: Line) -> int:
    key = line["key"]
    assert isinstance(key, dict)
    return int(key["concurrency"])


def _rates(lines: Sequence[Line]) -> list[float]:
    """Tokens per second of each repetition, in their order."""

    def repetition(line: Line) -> int:
        key = line["key"]
        assert isinstance(key, dict)
        return int(key["repetition"])

    return [float(numbers_of(line)["tok_s"] or 0.0) for line in sorted(lines, key=repetition)]


def main() -> int:
    """Start a server, measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-auto", description=__doc__)
    parser.add_argument("--model-path", type=Path, default=BUNDLED_PATH, help="checkpoint; default: the bundled one")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCIES), help="requests at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=48, help="per measurement, at least four times the concurrency")
    parser.add_argument("--prompts", default="bundled", help="as for `dlm-sglang bench`")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("auto.jsonl"),
        help="JSON lines, every measurement; the comparison goes beside it as .json",
    )
    parser.add_argument("--plots", type=Path, help="folder for plots")
    parser.add_argument("--resume", action="store_true", help="measure only what the results file lacks")
    parser.add_argument("flags", nargs="*", help="other flags for the server, behind --")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    model = ["--model-path", str(arguments.model_path), "--speculative-algorithm", "DLM"]
    if not arguments.resume:
        arguments.out.unlink(missing_ok=True)
    with running_server([*model, *(arguments.flags or SERVER_FLAGS)], "auto") as url:
        plan = bench.BenchPlan(
            url=url,
            settings=(*FIXED, AUTO),
            patterns=[Pattern(concurrency=count) for count in arguments.concurrency],
            prompts=load_prompts(arguments.prompts, arguments.max_tokens),
            repetitions=arguments.repeats,
            requests=arguments.requests,
        )
        store = bench.run_bench(plan, arguments.out, say, resume=arguments.resume)
    if arguments.plots is not None:
        from dlm_sglang.measure import bench_report

        for path in bench_report.write_plots(bench.rows_of(store.lines), arguments.plots):
            say(f"wrote {path}")
    comparisons = compare(store.lines)
    report = {
        "command": command_of("dlm_sglang.measure.auto_bench"),
        **machine(),
        "comparisons": [asdict(one) for one in comparisons],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(as_table(comparisons))
    print(f"smallest auto/best: {min(one.ratio for one in comparisons):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
