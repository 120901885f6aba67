"""The figures of a report, drawn with matplotlib: SVG, PNG, and their numbers as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from unconv.errors import UnconvError
from unconv.io import replacing
from unconv.reporting import text as words
from unconv.reporting.audit import attack_chart, noise_chart
from unconv.reporting.data import Report, done, start_at
from unconv.reporting.images import load
from unconv.reporting.style import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    Drawing,
    Table,
    axes_of,
    caption,
    fit,
    name_layers,
    width,
)

MOST_PANELS = 16
SHEET_IMAGES, SHEET_LAYERS, SHEET_PIXELS = 8, 10, 160


def draw_figures(report: Report, run: Path) -> dict[str, Path]:
    """Write every figure that there is data for into ``run/figures``; return the SVG files by name."""
    drawings: dict[str, Callable[[Report], Drawing | None]] = {
        "audit": attack_chart,
        "noise": noise_chart,
        "error-depth": error_by_layer,
        "retained": retained_detail,
        "calibration": calibration,
        "contact-sheet": partial(contact_sheet, run=run),
    }
    folder = run / "figures"
    written = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            drawn = draw(report)
            if drawn is None:
                continue
            figure, table = drawn
            folder.mkdir(parents=True, exist_ok=True)
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it has been laid out; each file would do so again
            for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
                with replacing(folder / (name + suffix)) as file:
                    figure.savefig(file, format=suffix[1:], metadata=metadata, dpi=160)
            with replacing(folder / f"{name}.csv") as file, file.open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows(table)
            written[name] = folder / f"{name}.svg"
    return written


def error_by_layer(report: Report) -> Drawing | None:
    """Draw mean relative error and SSIM of what is recovered, by layer; hollow where not every image converged."""
    groups = dict.fromkeys(series.group for series, points in report.series.items() if points)
    table: Table = [
        ["layer", "recover", "code", "method", "side_info", "metric", "mean", "low", "high", "images", "converged"]
    ]
    panels = [
        (group, metric) for group in groups for metric in ("relative_error", "ssim") if _has(report, group, metric)
    ]
    if not panels:
        return None
    methods = list(dict.fromkeys(series.method for series in report.series))
    figure = Figure((width(report), 2.6 * len(panels) + 0.4), layout="constrained")
    for n, (axes, (group, metric)) in enumerate(zip(axes_of(figure, len(panels), 1), panels)):
        for series, points in report.series.items():
            if series.group != group:
                continue
            colour, marker = (x[methods.index(series.method) % len(x)] for x in (COLOURS, MARKERS))
            means = {i: r[metric] for i, r in points.items() if r[metric] is not None}
            line, label = LINES.get(series.side_info, LINES["none"]), words.series_name(series)
            axes.plot(list(means), list(means.values()), color=colour, linestyle=line, label=label)
            for i, mean in means.items():
                record, ends = points[i], points[i]["spread"].get(metric)
                axes.plot(i, mean, color=colour, marker=marker, markerfacecolor=colour if done(record) else "white")
                if ends is not None:
                    axes.vlines(i, *ends, color=colour, linewidth=0.9, alpha=0.55)
                counts = record["images"], record["converged"]
                table.append([report.names[i], *series, metric, mean, *(ends or (None, None)), *counts])
        if group[0] == "image" and metric in report.baseline:
            axes.axhline(report.baseline[metric], color="#777777", linewidth=0.9, linestyle="--", label="mean colour")
        if metric == "relative_error":
            axes.axhline(1, color="#777777", linewidth=0.9, linestyle=":", label="all-zero answer")
            axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        axes.set_ylabel(words.METRIC_NAMES[metric])
        axes.set_title(words.group_name(group).capitalize())
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        name_layers(axes, report, range(len(report.names)), last=n == len(panels) - 1)
    caption(figure, report, f"Mean; bars: {words.spread_name(report)}. Hollow: not converged for every image.")
    return figure, table


def retained_detail(report: Report) -> Drawing | None:
    """Draw the share of luminance and colour that a linear decoder explains, by spatial frequency and layer."""
    found = {i: e for i, x in enumerate(report.layers) if (e := (x.get("linear") or {}).get("explained_variance"))}
    if not found:
        return None
    control = {i: e for i in found if (e := report.layers[i]["linear"].get("control"))}
    table: Table = [["layer", "weights", "from_cycles_per_pixel", "to_cycles_per_pixel", "luminance", "colour"]]
    for weights, of in (("the network's", found), ("random", control)):
        for i, explained in of.items():
            edges = explained["edges"]
            for low, high, *shares in zip(edges, edges[1:], explained["luminance"], explained["colour"]):
                table.append([report.names[i], weights, low, high, *shares])
    shown = _spread(list(found), MOST_PANELS)
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure((7.2, 1.6 * lines + 0.7), layout="constrained")
    places = axes_of(figure, lines, columns)
    for n, (axes, i) in enumerate(zip(places, shown)):
        explained = found[i]
        for of, suffix, line in ((found, "", "-"), (control, ", random weights", "--")):
            for name, colour, marker in (("luminance", "#222222", "o"), ("colour", COLOURS[1], "s")):
                if i in of:
                    values = [math.nan if v is None else max(0.0, v) for v in of[i][name]]
                    shape, label = "" if suffix else marker, name + suffix
                    axes.plot(range(len(values)), values, color=colour, linestyle=line, marker=shape, label=label)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(fit(report.names[i], 24))
        ticks = range(0, len(explained["luminance"]), 2)
        axes.set_xticks(ticks, [f"1/{round(1 / explained['edges'][t + 1])}" for t in ticks])
        axes.tick_params(labelleft=n % columns == 0, labelbottom=n >= len(shown) - columns)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    figure.legend(handles=places[0].lines, loc="outside upper right", ncols=4, fontsize=7)
    figure.supylabel("share of variance explained", fontsize=8)
    caption(figure, report, "Linear decoder, by spatial frequency up to (cycles per pixel), coarse to fine.")
    return figure, table


def calibration(report: Report) -> Drawing | None:
    """Draw the relative errors that linear decoders expect against those that they make, an image a point."""
    table: Table = [["layer", "file", "expected_error", "relative_error"]]
    table += [[report.names[i], file, *errors] for i, file, *errors in report.expected]
    if len(table) < 2:
        return None
    layers = list(dict.fromkeys(row[0] for row in table[1:]))
    figure = Figure((4.6, 3.2), layout="constrained")
    (axes,) = axes_of(figure, 1, 1)
    for k, layer in enumerate(layers):
        points = [row[2:] for row in table[1:] if row[0] == layer]
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS) % len(MARKERS)]
        axes.plot(*zip(*points), color=colour, marker=marker, linestyle="", label=fit(layer, 18))
    most = 1.05 * max(max(row[2:]) for row in table[1:])
    axes.plot([0, most], [0, most], color="#777777", linewidth=0.9, linestyle="--", label="expected = true")
    axes.set(xlabel="expected relative error", ylabel="relative error", xlim=(0, most), ylim=(0, most))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    caption(figure, report, "Linear decoders; an image a point.")
    return figure, table


def contact_sheet(report: Report, run: Path) -> Drawing | None:
    """Draw a row per image: the original, and its reconstructions by layer from the series that the page opens with."""
    start = start_at(report)
    series = start[0] if start else None
    chosen = _spread(sorted({i for p in report.pictures for i, s in p.rows if s == series}), SHEET_LAYERS)
    if series is None or not chosen:
        return None
    pictures = report.pictures[:SHEET_IMAGES]
    side = min(1.3, 9.5 / (len(chosen) + 1))
    width, height = side * (len(chosen) + 1), side * 1.15 * len(pictures) + 0.6
    figure = Figure((width, height))
    axes = figure.add_axes((0, 0, 1, 1))  # one set for all pictures: a set for each takes many seconds to lay out
    axes.set_axis_off()
    table: Table = [["file", "layer", *series._fields, "relative_error"]]
    for column, name in enumerate(["original", *(report.names[i] for i in chosen)]):
        axes.text(side * (column + 0.5), height - 0.55, fit(name, int(side * 13)), ha="center", fontsize=6.5)
    for n, picture in enumerate(pictures):
        bottom = height - 0.6 - side * (1.15 * n + 0.97)
        cells: list[tuple[str | None, str]] = [(picture.original, fit(picture.file, int(side * 13)))]
        for i in chosen:
            row = picture.rows.get((i, series), {})
            cells.append((row.get("picture"), words.number(row.get("relative_error"))))
            table.append([picture.file, report.names[i], *series, row.get("relative_error")])
        for column, (path, label) in enumerate(cells):
            _show(axes, run, path, (side * (column + 0.03), bottom, 0.94 * side))
            axes.text(side * (column + 0.5), bottom - 0.02, label, ha="center", va="top", fontsize=6)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    text = words.caption(report, f"{words.series_name(series)}; numbers: relative error.")
    figure.text(0.01, 1 - 0.1 / height, text, fontsize=7, va="top", wrap=True)
    return figure, table


def _has(report: Report, group: tuple[str, str], metric: str) -> bool:
    chosen = (points for series, points in report.series.items() if series.group == group)
    return any(record[metric] is not None for records in chosen for record in records.values())


def _spread(values: list[int], most: int) -> list[int]:
    if len(values) <= most:
        return values
    return [values[round(n * (len(values) - 1) / (most - 1))] for n in range(most)]


def _show(axes: Axes, run: Path, path: str | None, place: tuple[float, float, float]) -> None:
    """Show a picture in its own proportions, or a dash."""
    left, bottom, side = place
    try:
        picture: Image.Image | None = load(run, path, SHEET_PIXELS) if path else None
    except UnconvError:
        picture = None
    if picture is None:
        axes.text(left + side / 2, bottom + side / 4, "–", ha="center", va="center")
        return
    wide, high = (side * n / max(picture.size) for n in picture.size)
    x = left + (side - wide) / 2
    smooth = "bicubic" if max(picture.size) < SHEET_PIXELS else "antialiased"
    axes.imshow(picture, extent=(x, x + wide, bottom, bottom + high), interpolation=smooth)
