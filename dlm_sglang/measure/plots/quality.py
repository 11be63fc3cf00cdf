"""The plot of an eval: accuracy over tokens per forward, with intervals and the frontier."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_sglang.measure.plots.style import Figure, colour_of, figure, marker_of
from dlm_sglang.measure.quality import QualityRow, Recommendation, pareto


def accuracy_over_parallelism(rows: Sequence[QualityRow], recommendation: Recommendation | None = None) -> Figure:
    """Every setting as a point with its 95 % interval; the line joins those that no other one beats."""
    made, (axes,) = figure(width=8.2, height=5.0)
    for mode in dict.fromkeys(row.mode for row in rows):
        own = [row for row in rows if row.mode == mode]
        below = [row.accuracy - row.low for row in own]
        above = [row.high - row.accuracy for row in own]
        axes.errorbar(
            [row.tpf for row in own],
            [row.accuracy for row in own],
            yerr=[below, above],
            fmt=marker_of(mode),
            color=colour_of(mode),
            label=mode,
            markersize=6,
            elinewidth=0.8,
            capsize=2,
            alpha=0.9,
        )
    frontier = pareto(rows)
    xs = [row.tpf for row in frontier]
    axes.step(xs, [row.accuracy for row in frontier], where="pre", color="#888888", linewidth=1, zorder=0)
    for number, row in enumerate(sorted(rows, key=lambda row: row.tpf)):
        text = row.setting.removeprefix(row.mode).strip() or "AR"
        above_point = number % 2 == 0
        axes.annotate(
            text,
            (row.tpf, row.accuracy),
            textcoords="offset points",
            xytext=(6, 5 if above_point else -11),
            fontsize=7.5,
            color="#333333",
        )
    if recommendation is not None:
        row = recommendation.row
        axes.scatter([row.tpf], [row.accuracy], s=170, facecolors="none", edgecolors="black", linewidths=1.3)
        axes.set_title(f"Recommended (circle): {row.setting}", fontsize=10, loc="left")
    axes.set_xlabel("tokens per forward, all decode forwards counted")
    axes.set_ylabel("accuracy, with 95 % interval")
    axes.margins(x=0.12)
    axes.legend(loc="lower left")
    return made
