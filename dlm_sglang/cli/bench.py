"""`dlm-sglang bench`: the modes beside plain SGLang on this machine, or load on any running server."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.cli import sweep_flags
from dlm_sglang.errors import SettingsError
from dlm_sglang.setting_table import BUNDLED_PATH

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from dlm_sglang.measure.bench import BenchPlan

COMPARISON_ONLY = ("model_path", "frontend", "rounds")
LOAD_ONLY = (
    *("rates", "only_rates", "prompts", "max_tokens", "no_stream", "warm_prefix_cache"),
    *("ttft_target_ms", "token_target_ms", "latency_target_ms"),
    *("modes", "block_lengths", "steps", "thresholds", "cross", "draft_thresholds", "temperature"),
    *("resume", "plots", "html"),
)


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "bench",
        help="measure speed: the modes beside plain SGLang, or any running server with --url",
        description="Without --url: start plain SGLang and our server on the same weights, load both in turn, print "
        "tokens/s and ratios: our AR over plain SGLang's (fixed lengths), each mode over our AR (natural answers). "
        "With --url: sweep settings and loads on a running OpenAI-compatible server.",
    )
    parser.add_argument("--model-path", type=Path, default=BUNDLED_PATH, help="checkpoint (default: the bundled one)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument(
        "--requests", type=int, default=24, help="per run, at least twice the concurrency (with --url four times)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frontend", action="store_true", help="measure what our HTTP layer adds to a request instead")
    parser.add_argument("--rounds", type=int, default=300, help="with --frontend: requests of each kind to each server")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the results as JSON too; with --url JSON lines (bench.jsonl)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    load = parser.add_argument_group("load on a running server")
    load.add_argument("--url", help="base URL, such as http://127.0.0.1:30000")
    load.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="measure nothing, put runs together")
    load.add_argument("--rates", type=float, nargs="+", default=[], metavar="X", help="Poisson arrivals per second")
    load.add_argument("--only-rates", action="store_true", help="no closed loop, only --rates")
    load.add_argument(
        "--prompts",
        default="bundled",
        metavar="SET",
        help="bundled, a JSONL file, or synthetic:IN,OUT (default: bundled)",
    )
    load.add_argument("--max-tokens", type=int, default=128, metavar="N", help="longest answer")
    load.add_argument("--no-stream", action="store_true", help="whole answers: TTFT and gaps are not measured")
    load.add_argument("--warm-prefix-cache", action="store_true", help="do not empty it before each measurement")
    load.add_argument("--ttft-target-ms", type=float, metavar="X", help="goodput: latest first chunk")
    load.add_argument("--token-target-ms", type=float, metavar="X", help="goodput: longest mean time per token")
    load.add_argument("--latency-target-ms", type=float, metavar="X", help="goodput: longest time to the whole answer")
    sweep_flags.add_settings(parser)
    sweep_flags.add_files(parser)
    defaults = {name: parser.get_default(name) for name in (*LOAD_ONLY, *COMPARISON_ONLY)}
    parser.set_defaults(run=run, defaults=defaults)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        SettingsError: a flag has no effect here.
    """
    is_load = bool(arguments.url or arguments.compare)
    idle = COMPARISON_ONLY if is_load else LOAD_ONLY
    for name in idle:
        if getattr(arguments, name) != arguments.defaults[name]:
            raise SettingsError(
                f"--{name.replace('_', '-')} has no effect {'with' if is_load else 'without'} --url",
                code="flag-without-effect",
                hint="leave it out" if is_load else "name the server: --url http://127.0.0.1:30000",
            )
    return _run_load(arguments) if is_load else _run_comparison(arguments)


def _run_comparison(arguments: argparse.Namespace) -> int:
    # Only this command needs an HTTP client and the task prompts.
    from dlm_sglang.measure import frontend, modes

    out = sys.stderr if arguments.json else sys.stdout

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    command = shlex.join(["dlm-sglang", *sys.argv[1:]])
    if arguments.frontend:
        rows = frontend.measure(arguments.model_path, arguments.rounds, say)
        if arguments.out is not None:
            frontend.write_report(arguments.out, rows, command)
        return 0
    say(modes.header())
    cells = modes.compare_modes(arguments.model_path, arguments.concurrency, arguments.requests, arguments.repeats, say)
    if arguments.out is not None:
        modes.write_report(arguments.out, cells, command)
    if arguments.json:
        print(json.dumps(modes.report(cells, command)))
    return 0


def _run_load(arguments: argparse.Namespace) -> int:
    from dlm_sglang.measure import bench, bench_text
    from dlm_sglang.measure.store import read_results, read_together
    from dlm_sglang.measure.table import render

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if arguments.plots or arguments.html:
        # A missing plot library is told before hours of measuring, not after.
        from dlm_sglang.measure import bench_report
    if arguments.compare:
        lines, results = read_together(arguments.compare)
    else:
        store = bench.run_bench(_plan(arguments), arguments.out or Path("bench.jsonl"), say, resume=arguments.resume)
        lines, results = store.lines, read_results(store.path)
    rows = bench.rows_of(lines)
    if arguments.plots:
        for path in bench_report.write_plots(rows, arguments.plots):
            say(f"wrote {path}")
    if arguments.html:
        bench_report.write_html(rows, results, arguments.html)
        say(f"wrote {arguments.html}")
    print(json.dumps(bench_text.as_json(rows)) if arguments.json else render(*bench_text.as_table(rows), 2))
    return 0


def _plan(arguments: argparse.Namespace) -> BenchPlan:
    from dlm_sglang.measure.bench import BenchPlan
    from dlm_sglang.measure.drive import Pattern
    from dlm_sglang.measure.metrics import Targets
    from dlm_sglang.measure.prompts import load_prompts

    closed = [] if arguments.only_rates else [Pattern(concurrency=count) for count in arguments.concurrency]
    patterns = [*closed, *(Pattern(rate_s=rate) for rate in arguments.rates)]
    if not patterns or any((pattern.rate_s or pattern.concurrency or 0) <= 0 for pattern in patterns):
        raise SettingsError("give concurrencies and rates above 0", code="flag-out-of-range")
    return BenchPlan(
        url=arguments.url.rstrip("/"),
        settings=sweep_flags.settings_of(arguments),
        patterns=patterns,
        prompts=load_prompts(arguments.prompts, arguments.max_tokens),
        repetitions=arguments.repeats,
        requests=arguments.requests,
        sampling={"temperature": arguments.temperature},
        targets=Targets(arguments.ttft_target_ms, arguments.token_target_ms, arguments.latency_target_ms),
        stream=not arguments.no_stream,
        warm_prefix_cache=arguments.warm_prefix_cache,
        api_key=sweep_flags.api_key(),
    )
