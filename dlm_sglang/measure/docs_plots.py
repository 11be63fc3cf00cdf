"""The plots and tables of docs/, measured anew on the bundled checkpoint: `make docs-plots`, about 10 minutes.

Starts a server of its own, measures into `docs/results/`, draws into `docs/plots/`, and replaces what stands
between `<!-- begin NAME -->` and `<!-- end NAME -->` in the pages. With `--reuse` nothing is measured: the
results that are there are drawn and written again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dlm_sglang.measure import bench, bench_report, bench_text, eval_report, eval_text, evaluate, quality
from dlm_sglang.measure.drive import Pattern
from dlm_sglang.measure.grid import DecodeSetting, make_grid
from dlm_sglang.measure.plan import text as plan_text
from dlm_sglang.measure.plan.gpu import find_gpu
from dlm_sglang.measure.plan.plan import Plan, Question, make_plan
from dlm_sglang.measure.plan.shape import load_shape
from dlm_sglang.measure.plots import plan as plan_plots
from dlm_sglang.measure.prompts import load_prompts
from dlm_sglang.measure.server import running_server
from dlm_sglang.measure.store import read_results
from dlm_sglang.measure.table import render
from dlm_sglang.setting_table import BUNDLED_PATH

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PLOTS = DOCS / "results", DOCS / "plots"
BENCH_RESULTS, EVAL_RESULTS = RESULTS / "bench-cpu.jsonl", RESULTS / "eval-cpu.jsonl"
PAGES = ("choosing-a-mode.md", "how-many-steps.md", "memory.md")
CONCURRENCIES = (1, 2, 4, 8, 16, 32)
BENCH_SETTINGS = (
    DecodeSetting("autoregressive"),
    DecodeSetting("self_speculation", 16),
    DecodeSetting("self_speculation", 32),
    DecodeSetting("auto"),
    DecodeSetting("diffusion", 16, confidence_threshold=0.9),
)
# Blocks with this ending are text, not tables.
PROSE = "-about"
MAX_LOSS = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m dlm_sglang.measure.docs_plots", description=__doc__)
    parser.add_argument("--reuse", action="store_true", help="measure nothing, use docs/results")
    parser.add_argument("--resume", action="store_true", help="measure only what docs/results lacks")
    parser.add_argument("--prompts", type=int, default=300, help="prompts of the eval")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of the bench")
    arguments = parser.parse_args(argv)
    if not arguments.reuse:
        _measure(arguments.prompts, arguments.repeats, resume=arguments.resume)
    blocks = {**_bench_blocks(), **_eval_blocks(), **_plan_blocks()}
    for name in PAGES:
        path = DOCS / name
        path.write_text(fill(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
        _say(f"wrote {path}")
    return 0


def fill(page: str, blocks: dict[str, str]) -> str:
    """The page with every marked block replaced; a marker without a block keeps its text."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in blocks:
            return match[0]
        text = blocks[name].strip()
        body = text if name.endswith(PROSE) else f"```text\n{text}\n```"
        return f"<!-- begin {name} -->\n{body}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (?P<name>[\w-]+) -->.*?<!-- end (?P=name) -->", block, page, flags=re.DOTALL)


def _measure(num_prompts: int, repeats: int, *, resume: bool) -> None:
    if not resume:
        for path in (BENCH_RESULTS, EVAL_RESULTS):
            path.unlink(missing_ok=True)
    flags = ["--model-path", str(BUNDLED_PATH), "--served-model-name", "nld-bundled", "--dtype", "float32"]
    flags += ["--speculative-algorithm", "DLM", "--mem-fraction-static", "0.1"]
    with running_server(flags, "docs") as url:
        evaluate.run_eval(evaluate.EvalPlan(url, _eval_settings(), num_prompts), EVAL_RESULTS, _say, resume=resume)
        patterns = [Pattern(concurrency=count) for count in CONCURRENCIES]
        plan = bench.BenchPlan(
            url, BENCH_SETTINGS, patterns, load_prompts("bundled", evaluate.MAX_TOKENS), repetitions=repeats
        )
        bench.run_bench(plan, BENCH_RESULTS, _say, resume=resume)


def _eval_settings() -> list[DecodeSetting]:
    return make_grid(
        ["autoregressive", "diffusion", "self_speculation"],
        block_lengths=[8, 16, 32],
        steps=[1, 2, 4, 8],
        thresholds=["0.5", "0.7", "0.9"],
    )


def _bench_blocks() -> dict[str, str]:
    results = read_results(BENCH_RESULTS)
    rows = bench.rows_of(results.lines)
    bench_report.write_plots(rows, PLOTS)
    return {"bench": render(*bench_text.as_table(rows), 2), "bench-about": bench_report.provenance(results)}


def _eval_blocks() -> dict[str, str]:
    results = read_results(EVAL_RESULTS)
    rows = quality.quality_rows(results.lines)
    advice = quality.recommend(rows, MAX_LOSS)
    eval_report.write_plot(rows, advice, PLOTS / "accuracy-over-tpf.png")
    table = render(*eval_text.as_table(rows))
    areas = ", ".join(f"{mode} {value:.2f}" for mode, value in eval_text.areas(rows).items())
    told = f"{table}\n\narea under the accuracy-parallelism curve: {areas}\nrecommended: {advice.row.setting}: "
    advices = [f"at most {loss:.0%} lost: {quality.recommend(rows, loss).row.setting}" for loss in (0.0, 0.01, 0.1)]
    return {
        "eval": f"{told}{advice.reason}",
        "eval-advice": "\n".join(advices),
        "eval-about": bench_report.provenance(results),
    }


def _plan_blocks() -> dict[str, str]:
    plan_plots.save(_plan("nld-8b", "h100"), PLOTS / "plan-nld-8b-h100.png")
    return plan_blocks()


def plan_blocks() -> dict[str, str]:
    """The computed blocks, which no measurement changes."""
    plan = _plan("nld-8b", "h100")
    whole = plan_text.as_text(plan)
    return {"plan": whole.split("Suggested settings")[0], "plan-yaml": plan_text.as_yaml(plan)}


def _plan(model: str, gpu: str) -> Plan:
    shape = load_shape(model)
    return make_plan(Question(shape, find_gpu(gpu), shape.dtype, (8, 16, 32)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
