"""The figures of a report, drawn with matplotlib: SVG, PNG, and their numbers as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from unconv.io import replacing
from unconv.reporting import style
from unconv.reporting import text as words
from unconv.reporting.audit import attack_chart, noise_chart
from unconv.reporting.data import Report, done
from unconv.reporting.style import Drawing, Table

MOST_PANELS = 16


def draw_figures(report: Report, run: Path) -> dict[str, Path]:
    """Write every figure that there is data for into ``run/figures``; return the SVG files by name."""
    drawings: dict[str, Callable[[Report], Drawing | None]] = {
        "audit": attack_chart,
        "noise": noise_chart,
        "error-depth": error_by_layer,
        "retained": retained_detail,
        "calibration": calibration,
    }
    folder = run / "figures"
    written = {}
    with matplotlib.rc_context(style.STYLE):
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
    figure = Figure((style.width(report), 2.6 * len(panels) + 0.4), layout="constrained")
    for n, (axes, (group, metric)) in enumerate(zip(style.panels(figure, len(panels)), panels)):
        for series, points in report.series.items():
            if series.group != group:
                continue
            colour, marker = (x[methods.index(series.method) % len(x)] for x in (style.COLOURS, style.MARKERS))
            means = {i: r[metric] for i, r in points.items() if r[metric] is not None}
            line, label = style.LINES.get(series.side_info, style.LINES["none"]), words.series_name(series)
            axes.plot(list(means), list(means.values()), color=colour, linestyle=line, label=label)
            for i, mean in means.items():
                record, ends = points[i], points[i]["spread"].get(metric)
                axes.plot(i, mean, color=colour, marker=marker, markerfacecolor=colour if done(record) else "white")
                if ends is not None:
                    axes.vlines(i, *ends, color=colour, linewidth=0.9, alpha=0.55)
                counts = record["images"], record["converged"]
                table.append([report.names[i], *series, metric, mean, *(ends or (None, None)), *counts])
        if group[0] == "image" and metric in report.baseline:
            style.reference(axes, report.baseline[metric], "mean colour")
        if metric == "relative_error":
            style.reference(axes, 1, "all-zero answer", ":")
            axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        axes.set_ylabel(words.METRIC_NAMES[metric])
        axes.set_title(words.group_name(group).capitalize())
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        style.name_layers(axes, report.names, last=n == len(panels) - 1)
    style.caption(figure, report, f"Mean; bars: {words.spread_name(report)}. Hollow: not converged for every image.")
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
    shown = _spread(list(found))
    columns = min(4, len(shown))
    figure = Figure((7.2, 1.6 * math.ceil(len(shown) / columns) + 0.7), layout="constrained")
    places = style.panels(figure, len(shown), columns)
    for n, (axes, i) in enumerate(zip(places, shown)):
        explained = found[i]
        for of, suffix, line in ((found, "", "-"), (control, ", random weights", "--")):
            for name, colour, marker in (("luminance", "#222222", "o"), ("colour", style.COLOURS[1], "s")):
                if i in of:
                    values = [math.nan if v is None else max(0.0, v) for v in of[i][name]]
                    shape, label = "" if suffix else marker, name + suffix
                    axes.plot(range(len(values)), values, color=colour, linestyle=line, marker=shape, label=label)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(style.fit(report.names[i], 24))
        ticks = range(0, len(explained["luminance"]), 2)
        axes.set_xticks(ticks, [f"1/{round(1 / explained['edges'][t + 1])}" for t in ticks])
        axes.tick_params(labelleft=n % columns == 0, labelbottom=n >= len(shown) - columns)
    figure.legend(handles=places[0].lines, loc="outside upper right", ncols=4, fontsize=7)
    figure.supylabel("share of variance explained", fontsize=8)
    style.caption(figure, report, "Linear decoder, by spatial frequency up to (cycles per pixel), coarse to fine.")
    return figure, table


def calibration(report: Report) -> Drawing | None:
    """Draw the relative errors that linear decoders expect against those that they make, an image a point."""
    table: Table = [["layer", "file", "expected_error", "relative_error"]]
    table += [[report.names[i], file, *errors] for i, file, *errors in report.expected]
    if len(table) < 2:
        return None
    layers = list(dict.fromkeys(row[0] for row in table[1:]))
    figure = Figure((4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for k, layer in enumerate(layers):
        points = [row[2:] for row in table[1:] if row[0] == layer]
        turn, place = divmod(k, len(style.COLOURS))
        colour, marker = style.COLOURS[place], style.MARKERS[turn % len(style.MARKERS)]
        axes.plot(*zip(*points), color=colour, marker=marker, linestyle="", label=style.fit(layer, 18))
    most = 1.05 * max(max(row[2:]) for row in table[1:])
    axes.plot([0, most], [0, most], color="#777777", linewidth=0.9, linestyle="--", label="expected = true")
    axes.set(xlabel="expected relative error", ylabel="relative error", xlim=(0, most), ylim=(0, most))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    style.caption(figure, report, "Linear decoders; an image a point.")
    return figure, table


def _has(report: Report, group: tuple[str, str], metric: str) -> bool:
    chosen = (points for series, points in report.series.items() if series.group == group)
    return any(record[metric] is not None for records in chosen for record in records.values())


def _spread(values: list[int]) -> list[int]:
    if len(values) <= MOST_PANELS:
        return values
    return [values[round(n * (len(values) - 1) / (MOST_PANELS - 1))] for n in range(MOST_PANELS)]
