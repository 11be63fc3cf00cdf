"""The plot and the HTML report of an eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlm_sglang.measure import eval_text
from dlm_sglang.measure.bench_report import provenance
from dlm_sglang.measure.plots import quality as plots
from dlm_sglang.measure.plots import style
from dlm_sglang.measure.quality import AREA_FLOOR, QualityRow, Recommendation
from dlm_sglang.measure.report import Report
from dlm_sglang.measure.store import Results

DEFINITIONS = (
    "accuracy: share of prompts whose answer is right and ended by itself; Wilson's 95 % interval.",
    "loss: the autoregressive accuracy less this one's, on the same prompts; 'loss at most' is the upper end of its "
    "95 % interval (paired, Agresti and Min). A setting whose answers are all the autoregressive ones loses nothing.",
    "TPF: tokens that decode forwards emitted over those forwards, sums over all prompts, denoise and commit forwards "
    "counted, prefill not. TPF denoise leaves commit forwards out, as papers do.",
    f"area: under the curve of best relative accuracy over TPF, without settings that lose over {AREA_FLOOR:.0%}; "
    "autoregressive is 1, and a mode that loses nothing scores its TPF.",
    "*: no other setting is better in both accuracy and TPF.",
)


def write_plot(rows: Sequence[QualityRow], recommendation: Recommendation, path: Path) -> None:
    """Accuracy over tokens per forward."""
    style.save(plots.accuracy_over_parallelism(rows, recommendation), path)


def write_html(
    rows: Sequence[QualityRow],
    recommendation: Recommendation,
    warnings: Sequence[str],
    results: Results,
    path: Path,
) -> None:
    """One self-contained file."""
    report = Report(f"Quality over speed: {results.equal['model']}")
    report.paragraph(provenance(results), "note")
    report.paragraph(f"Recommended: {recommendation.row.setting}. {recommendation.reason}.", "key")
    if warnings:
        report.bullets(warnings, "warn")
    report.image(style.png(plots.accuracy_over_parallelism(rows, recommendation)), "accuracy over tokens per forward")
    report.heading("Numbers")
    report.table(*eval_text.as_table(rows))
    report.heading("Area under the accuracy-parallelism curve")
    report.table(("mode", "area"), [(mode, f"{value:.2f}") for mode, value in eval_text.areas(rows).items()])
    tasks = list(rows[0].by_task)
    if tasks:
        report.heading("Accuracy by task")
        lines = [[row.setting, *(f"{row.by_task.get(task, 0):.2f}" for task in tasks)] for row in rows]
        report.table(["setting", *tasks], lines)
    report.bullets(DEFINITIONS, "note")
    report.write(path)
