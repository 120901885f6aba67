"""How every figure looks: colours, sizes, names of layers, captions."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unconv.reporting import text as words
from unconv.reporting.data import Report

# Okabe and Ito's colours, told apart with any colour vision; each method has its marker as well
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7a00", "#444444", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "X", "P")
LINES = {"gates": "-", "switches": (0, (5, 2.5)), "none": (0, (1, 1.6))}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unconv",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
    "text.parse_math": False,
}
MOST_NAMES = 26
Table = list[list[Any]]
Drawing = tuple[Figure, Table]


def panels(figure: Figure, count: int, columns: int = 1) -> list[Axes]:
    """Return the axes of so many panels, row after row."""
    places = list(figure.subplots(math.ceil(count / columns), columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.set_axis_off()
    return places[:count]


def width(report: Report) -> float:
    """Return the width of a figure with all layers in a row, in inches."""
    return min(18.0, max(7.2, 0.16 * len(report.names)))


def caption(figure: Figure, report: Report, rest: str) -> None:
    """Write what was measured below a figure: model, weights, number of images, budget, and the rest."""
    weights = f" ({PurePath(report.weights).name})" if report.weights else ""
    budget = f", {name}" if (name := words.budget_name(report)) else ""
    text = f"{report.model}{weights}, n = {report.images}{budget}. {rest}"
    figure.supxlabel(text.replace(". ", ".\n", 1), fontsize=7, x=0.01, ha="left")


def reference(axes: Axes, value: float, label: str, line: str = "--") -> None:
    """Draw what a trivial answer gets."""
    axes.axhline(value, color="#777777", linewidth=0.9, linestyle=line, label=label)


def name_layers(axes: Axes, names: list[str], *, last: bool) -> None:
    """Name the layers below an axis, the last of several, no more of them than can be read."""
    places = range(0, len(names), math.ceil(len(names) / MOST_NAMES))
    shown = [fit(names[n], 18) if last else "" for n in places]
    axes.set_xticks(places, shown, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(names) - 0.5)


def fit(name: str, most: int) -> str:
    """Return a name cut to a number of characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
