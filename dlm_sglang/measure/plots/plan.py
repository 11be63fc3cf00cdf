"""The plot of a plan: where the memory goes, how many requests fit, how fast each mode can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlm_sglang.measure.plan.gpu import GIB
from dlm_sglang.measure.plan.plan import Plan
from dlm_sglang.measure.plan.roofline import Way
from dlm_sglang.measure.plots import style
from dlm_sglang.measure.plots.style import Axes, Figure, colour_of

_LINE_STYLES = ("-", "--", ":", "-.")


def save(plan: Plan, path: Path) -> None:
    """Write the plot as PNG."""
    style.save(draw(plan), path)


def draw(plan: Plan) -> Figure:
    """Memory and concurrency, and speed where the device's rates are known."""
    has_speed = bool(plan.speed)
    made, axes = style.figure(3 if has_speed else 2, width=12.5 if has_speed else 8.4, height=4.2)
    _memory(axes[0], plan)
    _concurrency(axes[1], plan)
    if has_speed:
        _speed(axes[2], plan)
    name = f"{plan.question.shape.name} on {plan.question.gpu.name}, {plan.question.dtype}: computed, not measured"
    if has_speed:
        style.legend_below(made, right=True)
    made.suptitle(name, fontsize=11, x=0.01, ha="left")
    return made


def _memory(axes: Axes, plan: Plan) -> None:
    capacity = plan.capacity
    kept = capacity.free_bytes - capacity.weight_bytes - capacity.kv_bytes
    parts = (
        ("weights", capacity.weight_bytes, "#0072B2"),
        ("KV pool", capacity.kv_bytes, "#009E73"),
        ("logits, activations,\ngraphs, spare", kept, "#BBBBBB"),
    )
    bottom = 0.0
    for name, size, colour in parts:
        axes.bar([0], [size / GIB], bottom=bottom, color=colour, width=0.5, label=f"{name}: {size / GIB:.1f} GiB")
        bottom += size / GIB
    axes.set_xlim(-0.35, 1.6)
    axes.set_xticks([])
    axes.set_ylabel("GiB")
    axes.set_title("memory", fontsize=10, loc="left")
    axes.grid(visible=False)
    handles, names = axes.get_legend_handles_labels()
    # In the order of the stack.
    axes.legend(handles[::-1], names[::-1], loc="center right")


def _concurrency(axes: Axes, plan: Plan) -> None:
    way = plan.ways[1]
    contexts = list(plan.concurrency)
    counts = [plan.concurrency[context][way.label] for context in contexts]
    axes.plot(contexts, counts, "-o", markersize=4, color="#333333")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(contexts, [f"{context // 1024}k" if context >= 1024 else str(context) for context in contexts])
    axes.set_yticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("tokens per request")
    axes.set_title(f"requests that the KV pool holds (block {way.block_length})", fontsize=10, loc="left")


def _speed(axes: Axes, plan: Plan) -> None:
    """At the context nearest to the typical one."""
    context = min(plan.question.contexts, key=lambda length: abs(length - plan.question.context))
    rows = [row for row in plan.speed if row.context == context and row.fits]
    for way, line in _styled(plan.ways):
        axes.plot(
            [row.requests for row in rows],
            [row.tok_s_attainable[way.label] for row in rows],
            line,
            marker="o",
            markersize=4,
            color=colour_of(way.mode),
            label=_name(way),
        )
    axes.set_xscale("log", base=2)
    ticks = [row.requests for row in rows]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"requests at a time, {context} tokens each")
    axes.set_title("tok/s of all requests, attainable", fontsize=10, loc="left")


def _name(way: Way) -> str:
    return way.mode if way.block_length == 1 else f"{way.mode}, block {way.block_length}"


def _styled(ways: Sequence[Way]) -> list[tuple[Way, str]]:
    seen: dict[str, int] = {}
    made = []
    for way in ways:
        made.append((way, _LINE_STYLES[seen.get(way.mode, 0) % len(_LINE_STYLES)]))
        seen[way.mode] = seen.get(way.mode, 0) + 1
    return made
