"""The plot of an eval: accuracy over tokens per forward, with intervals and the frontier."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_sglang.measure.plots import labels
from dlm_sglang.measure.plots.style import Axes, Figure, colour_of, figure, marker_of
from dlm_sglang.measure.quality import QualityRow, Recommendation, pareto

_TICKS = (0.5, 1, 2, 4, 8, 16, 32)


def accuracy_over_parallelism(rows: Sequence[QualityRow], recommendation: Recommendation | None = None) -> Figure:
    """Every setting as a point with its 95 % interval; the line joins those that no other one beats."""
    made, (axes,) = figure(width=8.2, height=5.0)
    for mode in dict.fromkeys(row.mode for row in rows):
        _points(axes, mode, [row for row in rows if row.mode == mode])
    frontier = pareto(rows)
    line = [row.accuracy for row in frontier]
    axes.step([row.tpf for row in frontier], line, where="pre", color="#999999", linewidth=1, zorder=0)
    _frame(axes, rows)
    first = recommendation.row.setting if recommendation else ""
    kept = {row.setting for row in frontier}
    ordered = sorted(rows, key=lambda row: (row.setting != first, row.setting not in kept))
    labels.place(axes, [(row.tpf, row.accuracy, _short(row)) for row in ordered])
    if recommendation is not None:
        row = recommendation.row
        axes.scatter([row.tpf], [row.accuracy], s=170, facecolors="none", edgecolors="black", linewidths=1.3)
        axes.set_title(f"Recommended (circle): {row.setting}", fontsize=10, loc="left")
    return made


def _points(axes: Axes, mode: str, own: Sequence[QualityRow]) -> None:
    tpf, accuracy = [row.tpf for row in own], [row.accuracy for row in own]
    axes.vlines(
        tpf, [row.low for row in own], [row.high for row in own], color=colour_of(mode), alpha=0.35, linewidth=1
    )
    axes.plot(tpf, accuracy, marker_of(mode), color=colour_of(mode), label=mode, markersize=6)


def _frame(axes: Axes, rows: Sequence[QualityRow]) -> None:
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xlim(0.75 * min(row.tpf for row in rows), 1.6 * max(row.tpf for row in rows))
    low, high = axes.get_xlim()
    shown = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_xlabel("tokens per forward, all decode forwards counted")
    axes.set_ylabel("accuracy, with 95 % interval")
    axes.legend(loc="lower left")


def _short(row: QualityRow) -> str:
    words = row.setting.removeprefix(row.mode).strip().replace("block ", "b").replace("threshold ", "thr ")
    return words or row.mode
