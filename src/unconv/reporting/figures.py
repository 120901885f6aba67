"""The figures of a report, drawn with matplotlib and written as SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from unconv.errors import UnconvError
from unconv.reporting import text as words
from unconv.reporting.data import (
    Point,
    ReportData,
    Series,
    curves,
    finite,
    main_series,
    short_names,
)
from unconv.reporting.images import LOSSLESS, load

# Okabe and Ito's colours, told apart with any colour vision; each method has its marker as well
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7a00", "#444444", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "X", "P")
LINES = {"gates": "-", "switches": (0, (5, 2.5)), "none": (0, (1, 1.6))}
WIDTH, WIDEST = 7.2, 18.0
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unconv",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
    "text.parse_math": False,
}
MOST_TICKS = 26
SHEET_IMAGES = 8
SHEET_STAGES = 13
SHEET_PIXELS = 160
CAPTION = 0.2


def write_figures(data: ReportData, run: Path) -> list[Path]:
    """Write every figure that there is data for into ``run/figures``, as SVG and as PNG.

    Equal data and pictures give equal bytes.

    Args:
        data: What to draw.
        run: The run directory, which the pictures are read from.

    Returns:
        Paths of the files.
    """
    data_shown = data.printable()
    drawings: dict[str, Callable[[], Figure | None]] = {
        "error-depth": lambda: error_against_depth(data_shown),
        "sparsity": lambda: sparsity(data_shown),
        "coherence": lambda: coherence(data_shown),
        "rip": lambda: rip(data_shown),
        "contact-sheet": lambda: contact_sheet(data, run),
    }
    folder = run / "figures"
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            if figure is None:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it has been laid out; each file would do so again
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                figure.savefig(folder / (name + suffix), metadata=metadata, dpi=160)
                written.append(folder / (name + suffix))
    return written


def error_against_depth(data: ReportData) -> Figure | None:
    """Mean relative error at each stage, one line per method and side information, with its range over images.

    Args:
        data: What to draw.

    Returns:
        One panel per tensor recovered and code; ``None`` where nothing was inverted.
    """
    lines = {series: points for series, points in curves(data).items() if _errors(points)}
    groups = list(dict.fromkeys(series.group for series in lines))
    if not groups:
        return None
    methods = list(dict.fromkeys(series.method for series in lines))
    most = max(sum(series.group == group for series in lines) for group in groups)
    height = max(2.5, 0.19 * most + 1.1)
    figure = Figure((_width(data), height * len(groups) + 0.35), layout="constrained")
    for axes, group in zip(_axes(figure, len(groups), 1), groups):
        for series, points in lines.items():
            if series.group == group:
                _draw_line(axes, series, points, methods.index(series.method))
        axes.axhline(1, color="#777777", linewidth=0.9, linestyle=(0, (1, 2)))
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        axes.set_ylabel("relative error")
        axes.set_title(words.capital(words.group_name(group)))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        _name_stages(axes, data)
    spread = words.spread_words(data)
    _foot(figure, f"Mean over images; bars: {spread}. Dotted line at 1: an all-zero answer.")
    return figure


def sparsity(data: ReportData) -> Figure | None:
    """Percentage of non-zeros at each stage, after the activation and after the pooling.

    Args:
        data: What to draw.

    Returns:
        The figure; ``None`` where it was not measured.
    """
    kinds = (("activation", "after the activation", COLOURS[0], "o"), ("pooled", "after the pooling", COLOURS[1], "s"))
    values = {key: _there(finite(stage.get(key)) for stage in data.stages) for key, *_ in kinds}
    if not any(places for places, _ in values.values()):
        return None
    figure = Figure((_width(data), 2.6), layout="constrained")
    (axes,) = _axes(figure, 1, 1)
    for key, label, colour, marker in kinds:
        # not every stage pools, so a line through the pooled values would join what is not adjacent
        line = "-" if key == "activation" else ""
        axes.plot(*values[key], color=colour, marker=marker, linestyle=line, label=label)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% non-zero")
    axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.14))
    axes.set_title("Non-zeros in the code")
    _name_stages(axes, data)
    return figure


def coherence(data: ReportData) -> Figure | None:
    """Signed, absolute and shift-aware coherence of each stage's filters beside Gaussian ones.

    Args:
        data: What to draw.

    Returns:
        Three panels; ``None`` where it was not measured.
    """
    if not any(stage.get("coherence") for stage in data.stages):
        return None
    figure = Figure((_width(data, 3), 2.7), layout="constrained")
    for n, (axes, name) in enumerate(zip(_axes(figure, 1, 3), ("signed", "absolute", "shifted"))):
        for which, label, colour, marker, face in (
            ("learned", "learned", COLOURS[0], "o", COLOURS[0]),
            ("random", "Gaussian", COLOURS[1], "s", "white"),
        ):
            found = _there(finite(((stage.get("coherence") or {}).get(which) or {}).get(name)) for stage in data.stages)
            axes.plot(*found, color=colour, marker=marker, markerfacecolor=face, label=label)
        axes.set_ylim(0, 1.03)
        axes.set_title(name)
        if n == 0:
            axes.set_ylabel("filter coherence")
            axes.legend(loc="lower left")
        else:
            axes.tick_params(labelleft=False)
        _name_stages(axes, data, 3)
    return figure


def rip(data: ReportData) -> Figure | None:
    """Sampled RIP ratios: an interval from the 1st to the 99th percentile with the median, per stage and filters.

    Args:
        data: What to draw.

    Returns:
        A row of panels per boundary, learned filters as they are on an axis of their own; ``None`` where it was
        not sampled.
    """
    records = [(i, r) for i, stage in enumerate(data.stages) for r in stage.get("rip") or () if _has_interval(r)]
    boundaries = [b for b in words.BOUNDARIES if any(r["boundary"] == b for _, r in records)]
    panels = [
        names for names in (("learned",), ("normalised", "gaussian")) if any(r["filters"] in names for _, r in records)
    ]
    if not records:
        return None
    figure = Figure((_width(data, len(panels)), 2.35 * len(boundaries) + 0.3), layout="constrained")
    places = _axes(figure, len(boundaries), len(panels))
    for n, (boundary, names) in enumerate((b, names) for b in boundaries for names in panels):
        axes = places[n]
        axes.axhline(1, color="#777777", linewidth=0.9)
        for filters in names:
            colour = COLOURS[1] if filters == "gaussian" else COLOURS[0]
            face = "white" if filters == "gaussian" else colour
            shift = 0.0 if len(names) == 1 else (-0.14 if filters == "normalised" else 0.14)
            some = [(i, r) for i, r in records if (r["boundary"], r["filters"]) == (boundary, filters)]
            axes.vlines(
                [i + shift for i, _ in some], [r["p01"] for _, r in some], [r["p99"] for _, r in some], color=colour
            )
            axes.plot(
                [i + shift for i, _ in some],
                [r["p50"] for _, r in some],
                linestyle="",
                marker="s" if filters == "gaussian" else "o",
                color=colour,
                markerfacecolor=face,
                label=words.FILTERS[filters],
            )
        axes.set_title(f"{words.capital(words.BOUNDARIES[boundary])}: {' and '.join(words.FILTERS[f] for f in names)}")
        _name_stages(axes, data, len(panels))
        if n % len(panels) == 0:
            axes.set_ylabel("‖Wᵀz‖ / ‖z‖")
    _foot(figure, "Marker: median of the sampled codes (filled: learned, open: Gaussian); bar: 1st to 99th percentile.")
    return figure


def contact_sheet(data: ReportData, run: Path) -> Figure | None:
    """Pictures: a row per image, the original and then the reconstruction from each stage by the main series.

    Args:
        data: What to draw.
        run: The run directory, which the pictures are read from.

    Returns:
        The first eight images at up to thirteen stages spread over the network; ``None`` without pictures.
    """
    start = main_series(curves(data))
    shown = data.printable()
    pictures = [(p, q["file"]) for p, q in zip(data.pictures, shown.pictures) if p.get("original")][:SHEET_IMAGES]
    kept = [r["stage"] for p, _ in pictures for r in p["reconstructions"] if r.get("path") and Series.of(r) == start]
    stages = [i for i, stage in enumerate(data.stages) if stage["stage"] in kept]
    if start is None or not stages:
        return None
    if len(stages) > SHEET_STAGES:
        stages = [stages[round(n * (len(stages) - 1) / (SHEET_STAGES - 1))] for n in range(SHEET_STAGES)]
    names = [data.stages[i]["stage"] for i in stages]
    _, short = short_names([stage["stage"] for stage in shown.stages])
    columns = len(stages) + 1
    side = min(1.3, 9.5 / columns)
    rows = []
    for picture, label in pictures:
        found = {r["stage"]: r for r in picture["reconstructions"] if Series.of(r) == start}
        cells = [(_picture(run, picture["original"]), _fit(label, side))]
        for name in names:
            record = found.get(name, {})
            error = finite(record.get("relative_error"))
            cells.append((_picture(run, record.get("path")), words.number(error)))
        rows.append(cells)
    shapes = [[p.height / max(p.size) if p else 0.0 for p, _ in cells] for cells in rows]
    heights = [0.94 * side * (max(row) or 1.0) for row in shapes]
    # one set of axes in inches for all pictures: a set for each takes matplotlib many seconds to lay out
    width, height = side * columns + 0.1, sum(heights) + CAPTION * len(rows) + 0.6
    figure = Figure((width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    full = [shown.stages[i]["stage"] for i in stages]
    heads = full if all(_fit(name, side) == name for name in full) else [short[i] for i in stages]
    for column, head in enumerate(["original", *heads]):
        axes.text(0.05 + side * (column + 0.47), height - 0.53, _fit(head, side), ha="center", fontsize=7)
    bottom = height - 0.6
    for cells, high in zip(rows, heights):
        bottom -= high
        for column, (picture, caption) in enumerate(cells):
            left = 0.05 + side * column
            _show(axes, picture, (left, bottom, 0.94 * side))
            axes.text(left + 0.47 * side, bottom - 0.03, caption, ha="center", va="top", fontsize=6)
        bottom -= CAPTION
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    figure.suptitle(
        f"{words.capital(words.group_name(start.group))}: {words.series_name(start)}. Numbers: relative error.",
        fontsize=8.5,
        x=0.05 / width,
        y=1 - 0.1 / height,
        ha="left",
    )
    return figure


def _axes(figure: Figure, rows: int, columns: int) -> list[Axes]:
    grid = figure.subplots(rows, columns, squeeze=False)
    return [axes for row in grid for axes in row]


def _width(data: ReportData, panels: int = 1) -> float:
    # so that markers of neighbouring stages stay apart
    return min(WIDEST, max(WIDTH, 0.16 * len(data.stages) * panels))


def _foot(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7.5, x=0.02, ha="left")


def _draw_line(axes: Axes, series: Series, points: dict[int, Point], method: int) -> None:
    errors = _errors(points)
    colour = COLOURS[method % len(COLOURS)]
    style = LINES.get(series.side_info, LINES["none"])
    marker = MARKERS[method % len(MARKERS)]
    label = words.series_name(series)
    axes.plot(list(errors), list(errors.values()), color=colour, linestyle=style, marker=marker, label=label)
    ranges = {i: points[i].spread["relative_error"] for i in errors if "relative_error" in points[i].spread}
    lows, highs = [low for low, _ in ranges.values()], [high for _, high in ranges.values()]
    axes.vlines(list(ranges), lows, highs, color=colour, linewidth=0.9, alpha=0.55)


def _there(values: Iterable[float | None]) -> tuple[list[int], list[float]]:
    # places and values of what was measured
    there = [(i, v) for i, v in enumerate(values) if v is not None]
    return [i for i, _ in there], [v for _, v in there]


def _errors(points: dict[int, Point]) -> dict[int, float]:
    return {i: p.error for i, p in sorted(points.items()) if p.error is not None}


def _has_interval(record: dict[str, Any]) -> bool:
    return all(finite(record.get(name)) is not None for name in ("p01", "p50", "p99"))


def _name_stages(axes: Axes, data: ReportData, panels: int = 1) -> None:
    # without the path that they share, and no more of them than can be read
    prefix, names = short_names([stage["stage"] for stage in data.stages])
    every = math.ceil(len(names) * panels / (MOST_TICKS * _width(data, panels) / WIDTH)) or 1
    places = list(range(0, len(names), every))
    turned = max((len(names[i]) for i in places), default=0) > 3
    axes.set_xticks(
        places, [_fit(names[i], 1.2) for i in places], rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(f"stage ({prefix}…)" if prefix else "stage")


def _fit(name: str, inches: float) -> str:
    most = max(6, int(inches * 13))
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _picture(run: Path, path: str | None) -> Image.Image | None:
    try:
        return load(run, path, SHEET_PIXELS) if path else None
    except UnconvError:
        return None


def _show(axes: Axes, picture: Image.Image | None, place: tuple[float, float, float]) -> None:
    # the longer side as given, in its own proportions; a dash where there is no picture
    left, bottom, side = place
    if picture is None:
        axes.text(left + side / 2, bottom + side / 4, "–", ha="center", va="center")
        return
    wide, high = (side * n / max(picture.size) for n in picture.size)
    x = left + (side - wide) / 2
    smooth = "nearest" if max(picture.size) <= LOSSLESS else "antialiased"
    axes.imshow(picture, extent=(x, x + wide, bottom, bottom + high), interpolation=smooth)
