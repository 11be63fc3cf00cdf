"""Plots of a bench: throughput over latency, and throughput over load with the crossovers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dlm_sglang.measure.bench import Row
from dlm_sglang.measure.plots import labels
from dlm_sglang.measure.plots.style import Axes, Figure, colour_of, figure, legend_below, marker_of

_LINE_STYLES = ("-", "--", ":", "-.")
BASELINE = "autoregressive"
AUTO = "auto"
# What `auto` chooses from.
EXACT_MODES = (BASELINE, "self_speculation")
ENVELOPE = "best fixed, plain output"


def throughput_over_latency(rows: Sequence[Row]) -> Figure:
    """Total tok/s over what one user sees, one line a setting, one point a load."""
    made, (axes,) = figure(height=4.8)
    points = []
    for setting, own, style in _lines(rows):
        known = [row for row in own if row.median("user_tok_s") is not None and row.median("tok_s") is not None]
        xs, ys = ([row.median(name) or 0.0 for row in known] for name in ("user_tok_s", "tok_s"))
        _line(axes, setting, style, xs, ys)
        loads = [f"{row.pattern.concurrency or f'{row.pattern.rate_s:g}/s'}" for row in known]
        points += list(zip(xs, ys, loads, strict=True))
    axes.set_xlabel("tokens per second that one user sees (mean)")
    axes.set_ylabel("tokens per second of all users")
    axes.set_title("Throughput over speed for one user; the numbers are concurrent requests", fontsize=10, loc="left")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend_below(made)
    labels.place(axes, points)
    return made


def throughput_over_load(rows: Sequence[Row]) -> Figure:
    """Total tok/s over concurrency, the range of the repetitions, and where AR overtakes a setting."""
    made, (axes,) = figure()
    closed = [row for row in rows if row.pattern.concurrency is not None]
    for setting, own, style in _lines(closed):
        xs = [float(row.pattern.concurrency or 0) for row in own]
        _line(axes, setting, style, xs, [row.median("tok_s") or 0.0 for row in own])
        low, high = [row.numbers["tok_s"][1] for row in own], [row.numbers["tok_s"][2] for row in own]
        axes.fill_between(xs, low, high, color=colour_of(_mode(setting)), alpha=0.12, linewidth=0)
    best = envelope(closed)
    if best:
        axes.plot(list(best), list(best.values()), "--", color="#999999", linewidth=4, alpha=0.5, label=ENVELOPE)
    crossings = crossovers(closed)
    for at in crossings.values():
        axes.axvline(at, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = sorted({row.pattern.concurrency for row in closed if row.pattern.concurrency})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("tokens per second of all users")
    told = "; ".join(f"AR overtakes {setting} near {at:.0f}" for setting, at in crossings.items())
    axes.set_title(told or "AR overtakes no other setting up to this load", fontsize=10, loc="left")
    legend_below(made)
    return made


def envelope(rows: Sequence[Row]) -> dict[int, float]:
    """Concurrency to the best tok/s of the fixed settings that give the plain output; empty where `auto` is absent."""
    if not any(_mode(row.setting) == AUTO for row in rows):
        return {}
    best: dict[int, float] = {}
    for row in rows:
        if _mode(row.setting) in EXACT_MODES and row.pattern.concurrency is not None and not row.refused:
            at = row.pattern.concurrency
            best[at] = max(best.get(at, 0.0), row.median("tok_s") or 0.0)
    return dict(sorted(best.items()))


def crossovers(rows: Sequence[Row]) -> dict[str, float]:
    """Setting to the concurrency from which AR is faster, on the line between measured loads."""
    speeds = {setting: {row.pattern.concurrency or 0: row.median("tok_s") or 0.0 for row in own}
              for setting, own, _ in _lines(rows)}  # fmt: skip
    base = speeds.get(BASELINE, {})
    found: dict[str, float] = {}
    for setting, own in speeds.items():
        if setting == BASELINE:
            continue
        shared = sorted(base.keys() & own.keys())
        for before, after in itertools.pairwise(shared):
            gain, loss = own[before] - base[before], base[after] - own[after]
            if gain > 0 and loss >= 0:
                found[setting] = before + (after - before) * gain / (gain + loss)
                break
    return found


def _lines(rows: Sequence[Row]) -> list[tuple[str, list[Row], str]]:
    """Rows by setting and kind of load, with a line style that tells lines of one mode apart."""
    made: list[tuple[str, list[Row], str]] = []
    seen: dict[str, int] = {}
    for setting, is_open in dict.fromkeys((row.setting, _is_open(row)) for row in rows if not row.refused):
        mode = _mode(setting)
        own = sorted((row for row in rows if (row.setting, _is_open(row)) == (setting, is_open)), key=_load)
        name = f"{setting}, arrivals" if is_open else setting
        made.append((name, own, _LINE_STYLES[seen.get(mode, 0) % len(_LINE_STYLES)]))
        seen[mode] = seen.get(mode, 0) + 1
    return made


def _is_open(row: Row) -> bool:
    return row.pattern.rate_s is not None


def _load(row: Row) -> float:
    return float(row.pattern.concurrency or 0) if row.pattern.rate_s is None else row.pattern.rate_s


def _mode(setting: str) -> str:
    return setting.partition(" ")[0].rstrip(",")


def _line(axes: Axes, setting: str, style: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    mode = _mode(setting)
    axes.plot(xs, ys, style, marker=marker_of(mode), color=colour_of(mode), label=setting, markersize=5, linewidth=1.6)
