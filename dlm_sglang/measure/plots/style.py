"""What all plots share: size, fonts, and one colour and marker per mode."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from dlm_sglang.errors import SettingsError

try:
    import matplotlib as mpl
except ImportError:
    raise SettingsError(
        "matplotlib is not installed: plots and reports need it",
        code="matplotlib-missing",
        hint="pip install -r deploy/requirements/measure.txt, or `make setup`",
    ) from None

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["Axes", "Figure", "colour_of", "figure", "legend_below", "marker_of", "png", "save"]

# Okabe and Ito's colours: told apart by colour-blind readers too.
_COLOURS: Mapping[str, str] = {
    "autoregressive": "#0072B2",
    "self_speculation": "#009E73",
    "diffusion": "#D55E00",
    "auto": "#CC79A7",
    "none": "#555555",
}
_MARKERS: Mapping[str, str] = {"autoregressive": "o", "self_speculation": "s", "diffusion": "^", "auto": "D"}
_OTHER_COLOUR = "#555555"
DPI = 110
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.fonttype": "none",
    }
)


def colour_of(mode: str) -> str:
    """The colour of a mode."""
    return _COLOURS.get(mode, _OTHER_COLOUR)


def marker_of(mode: str) -> str:
    """The marker of a mode."""
    return _MARKERS.get(mode, "x")


def figure(columns: int = 1, *, width: float = 7.2, height: float = 4.4) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side; sizes in inches."""
    made, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return made, list(axes[0])


def legend_below(made: Figure, *, right: bool = False) -> None:
    """One legend for the figure, under it, where no line can run through it."""
    handles, names = made.axes[-1].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower right" if right else "outside lower left", ncols=3)


def save(made: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(made))


def png(made: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure; closes it."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(made)
    return buffer.getvalue()
