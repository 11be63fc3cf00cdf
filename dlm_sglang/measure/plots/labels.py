"""Labels beside points, moved until they cover neither a point nor one another."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_sglang.measure.plots.style import DPI, Axes

FONT_SIZE = 7.5
# Where a label may stand, in points from its point, best first; negative x hangs it on its right end.
_OFFSETS = (
    *((6, 4), (6, -11), (-6, 4), (-6, -11), (6, 14), (6, -21), (-6, 14), (-6, -21)),
    *((6, 24), (6, -31), (-6, 24), (-6, -31), (6, 34), (6, -41), (6, 44)),
)
_POINT_RADIUS = 4.0
Box = tuple[float, float, float, float]


def place(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Label points of a drawn axes whose limits are final.

    Args:
        points: x, y and text, the most important first: it gets the best place.
    """
    axes.figure.canvas.draw()
    scale = DPI / 72
    frame = axes.get_window_extent()
    centres = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    taken: list[Box] = [_around(x, y, _POINT_RADIUS * scale) for x, y in centres]
    for (x, y, text), (at_x, at_y) in zip(points, centres, strict=True):
        width, height = 0.52 * FONT_SIZE * len(text) * scale, FONT_SIZE * 1.1 * scale

        def box(offset: tuple[int, int], at: Box = (at_x, at_y, width, height)) -> Box:
            left = at[0] + offset[0] * scale - (at[2] if offset[0] < 0 else 0)
            bottom = at[1] + offset[1] * scale
            return left, bottom, left + at[2], bottom + at[3]

        def cost(offset: tuple[int, int]) -> float:
            own = box(offset)
            outside = own[0] < frame.x0 or own[2] > frame.x1 or own[1] < frame.y0 or own[3] > frame.y1
            return sum(_overlap(own, other) for other in taken) + (1e6 if outside else 0.0)

        best = min(_OFFSETS, key=cost)
        taken.append(box(best))
        axes.annotate(
            text,
            (x, y),
            textcoords="offset points",
            xytext=best,
            fontsize=FONT_SIZE,
            color="#333333",
            ha="right" if best[0] < 0 else "left",
        )


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
