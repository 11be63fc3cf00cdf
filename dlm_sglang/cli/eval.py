"""`dlm-sglang eval`: accuracy over speed of a running server, and one recommendation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_sglang.cli import sweep_flags
from dlm_sglang.errors import SettingsError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

    from dlm_sglang.measure.evaluate import EvalPlan
    from dlm_sglang.measure.store import Line, Results


def add_parser(commands: Commands) -> None:
    """Add the command's flags."""
    parser = commands.add_parser(
        "eval",
        help="measure accuracy over speed on a running server and recommend a setting",
        description="Answer the bundled held-out tasks, or tasks of lm-evaluation-harness, in every setting; print "
        "accuracy with 95 % intervals beside tokens per forward; recommend the fastest setting within a stated loss.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="base URL of the server")
    parser.add_argument("--prompts", type=int, default=300, metavar="N", help="number of prompts (default: 300)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the held-out prompts (default: those of `make eval`)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time")
    parser.add_argument("--max-loss", type=float, default=0.01, metavar="X", help="accuracy that may be lost (0.01)")
    parser.add_argument("--objective", choices=("tpf", "tok_s"), default="tpf", help="what fast means (tpf)")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="tasks of lm-evaluation-harness")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="folder with more task YAML files")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="measure nothing, put runs together")
    parser.add_argument("--out", type=Path, default=Path("eval.jsonl"), metavar="FILE", help="JSON lines (eval.jsonl)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    sweep_flags.add_settings(parser)
    sweep_flags.add_files(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Measure and print."""
    from dlm_sglang.measure import eval_text, quality
    from dlm_sglang.measure.table import render

    if arguments.plots or arguments.html:
        # A missing plot library is told before an hour of measuring, not after.
        from dlm_sglang.measure import eval_report
    lines, results = _lines(arguments)
    rows = quality.quality_rows(lines)
    server = results.about.get("server")
    warnings = quality.warnings(rows, server.get("block_length") if isinstance(server, dict) else None)
    advice = quality.recommend(rows, arguments.max_loss, arguments.objective)
    for warning in warnings:
        _say(f"warning: {warning}")
    if arguments.plots:
        eval_report.write_plot(rows, advice, arguments.plots / "accuracy-over-tpf.png")
        _say(f"wrote {arguments.plots / 'accuracy-over-tpf.png'}")
    if arguments.html:
        eval_report.write_html(rows, advice, warnings, results, arguments.html)
        _say(f"wrote {arguments.html}")
    if arguments.json:
        print(json.dumps(eval_text.as_json(rows, advice, warnings)))
        return 0
    print(render(*eval_text.as_table(rows)))
    told = ", ".join(f"{mode} {value:.2f}" for mode, value in eval_text.areas(rows).items())
    print(f"\narea under the accuracy-parallelism curve: {told}")
    print(f"recommended: {advice.row.setting}: {advice.reason}")
    return 0


def _lines(arguments: argparse.Namespace) -> tuple[list[Line], Results]:
    """Measured now, or read from files that may be compared."""
    from dlm_sglang.measure import evaluate
    from dlm_sglang.measure.store import read_results, read_together

    if not arguments.compare:
        store, _ = evaluate.run_eval(_plan(arguments), arguments.out, _say, resume=arguments.resume)
        for line in store.lines:
            if "refused" in line:
                _say(f"warning: {line['key']} was refused: {line['refused']}")
        return store.lines, read_results(store.path)
    return read_together(arguments.compare)


def _plan(arguments: argparse.Namespace) -> EvalPlan:
    from dlm_sglang.bundled.tasks import HELD_OUT_SEED
    from dlm_sglang.measure.evaluate import EvalPlan
    from dlm_sglang.measure.quality import BASELINE_MODE

    if arguments.prompts < 1 or arguments.concurrency < 1 or not 0 <= arguments.max_loss < 1:
        raise SettingsError(
            "--prompts and --concurrency must be at least 1 and --max-loss in 0..1", code="flag-out-of-range"
        )
    settings = sweep_flags.settings_of(arguments)
    if not any(setting.mode == BASELINE_MODE for setting in settings):
        raise SettingsError(f"--modes must name {BASELINE_MODE}: losses are counted from it", code="baseline-missing")
    return EvalPlan(
        url=arguments.url.rstrip("/"),
        settings=settings,
        num_prompts=arguments.prompts,
        seed=HELD_OUT_SEED if arguments.seed is None else arguments.seed,
        max_tokens=arguments.max_tokens,
        concurrency=arguments.concurrency,
        sampling={"temperature": arguments.temperature},
        harness_tasks=tuple(arguments.tasks),
        include_path=arguments.include_path,
        api_key=sweep_flags.api_key(),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
