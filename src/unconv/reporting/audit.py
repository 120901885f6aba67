"""The audit of split points on a page: two figures, and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unconv.reporting import text as words
from unconv.reporting.data import Report
from unconv.reporting.style import COLOURS, MARKERS, Drawing, Table, caption, fit, name_layers, panels, reference, width

PANELS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
Entry = Mapping[str, Any]


def attack_chart(report: Report) -> Drawing | None:
    """Draw PSNR and SSIM by layer and attacker: means with their intervals, and the most exposed image."""
    audit = report.document.get("audit")
    if not audit or not audit["table"]:
        return None
    entries = [entry for entry in audit["table"] if not entry["noise"]]
    figure = Figure((width(report), 5.6), layout="constrained")
    for n, (axes, (metric, name)) in enumerate(zip(panels(figure, 2), PANELS.items())):
        for k, attacker in enumerate(audit["attackers"]):
            mine = [e for e in entries if e["attacker"] == attacker and e[metric] is not None]
            places = [report.names.index(e["layer"]) + 0.08 * (k - (len(audit["attackers"]) - 1) / 2) for e in mine]
            _line(axes, places, mine, metric, k, attacker)
            worst = [e[metric]["worst"] for e in mine]
            axes.plot(places, worst, color=COLOURS[k], marker="_", markersize=9, linestyle="")
        if (flat := audit["mean_colour"].get(metric)) is not None:
            reference(axes, flat, "mean colour")
        axes.plot([], [], color="#777777", marker="_", markersize=9, linestyle="", label="most exposed image")
        if not n and entries:
            # over the means: intervals of few images would squeeze them
            means = [e[metric][part] for e in entries if e[metric] for part in ("mean", "worst")]
            axes.set_ylim(min([0, *means]) - 1, 1.1 * max([10, *means]))
        axes.set_ylabel(name)
        name_layers(axes, report.names, last=n == 1)
        if not n:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    text = f"Means; bars: {audit['interval']}, cut at the frame. Hollow: not converged for every image."
    caption(figure, report, text)
    return figure, _numbers(entries)


def noise_chart(report: Report) -> Drawing | None:
    """Draw relative error against the level of noise on the features, a panel per layer."""
    audit = report.document.get("audit")
    if not audit or not audit["noise"]:
        return None
    attackers, layers = (
        list(dict.fromkeys(e[name] for e in audit["table"] if e["noise"])) for name in ("attacker", "layer")
    )
    columns = min(4, len(layers))
    figure = Figure((max(6.6, 1.9 * columns + 0.6), 2.1 * math.ceil(len(layers) / columns) + 0.9), layout="constrained")
    places = panels(figure, len(layers), columns)
    measured = sorted((e for e in audit["table"] if e["relative_error"]), key=lambda e: e["noise"])
    # one scale for all panels, over the means: intervals of few images would squeeze them
    top = max([1.05, *(1.05 * e["relative_error"]["mean"] for e in measured)])
    shown = []
    for n, (axes, layer) in enumerate(zip(places, layers)):
        for k, attacker in enumerate(attackers):
            mine = [e for e in measured if (e["layer"], e["attacker"]) == (layer, attacker)]
            shown += mine
            _line(axes, [e["noise"] for e in mine], mine, "relative_error", k, attacker)
        if (flat := report.baseline.get("relative_error")) is not None:
            reference(axes, flat, "mean colour")
        axes.set_ylim(0, top)
        axes.set_title(fit(layer, 24))
        axes.tick_params(labelleft=n % columns == 0)
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=7)
    figure.supylabel("relative error", fontsize=8)
    text = f"By relative noise. Bars: {audit['interval']}, cut at the frame. Hollow: not converged."
    caption(figure, report, text)
    return figure, _numbers(shown)


def audit_table(report: Report) -> list[list[Any]]:
    """Return the audit's rows: layer's place, attacker, noise, images, then cells of lines of text."""
    rows = []
    for entry in (report.document.get("audit") or {}).get("table", []):
        cells = [_cell(entry[metric]) for metric in (*PANELS, "relative_error")]
        share = entry["same_class"]
        cells.append((share, ["–" if share is None else f"{100 * share:.0f} %"]))
        if entry["lpips"] is not None:
            cells.append(_cell(entry["lpips"]))
        name = entry["attacker"] + (f", noise {entry['noise']:g}" if entry["noise"] else "")
        rows.append([report.names.index(entry["layer"]), name, entry["images"], cells, entry["status"]])
    return rows


def leakage_table(report: Report) -> list[list[Any]]:
    """Return what no attacker gets, by layer: its place, the noise, the best attacker, and the numbers as texts."""
    rows = []
    for entry in (report.document.get("leakage") or {}).get("table", []):
        bound, best, gap = (entry["psnr"]["bound"], entry["psnr"]["best"], entry["gap_db"])
        numbers = [words.number(value) for value in (bound, best, gap, entry["bits_per_pixel"])]
        rows.append([report.names.index(entry["layer"]), f"{entry['noise']:g}", entry["best"], numbers])
    return rows


def _cell(found: Entry | None) -> tuple[float | None, list[str]]:
    if found is None:
        return None, []
    low, high, worst = (words.number(found[part]) for part in ("low", "high", "worst"))
    lines = [] if found["low"] is None else [f"{low} to {high}", f"at worst {worst}"]
    return found["mean"], [words.number(found["mean"]), *lines]


def _line(axes: Axes, places: list[float], entries: list[Any], metric: str, k: int, label: str) -> None:
    """Draw means with their intervals, hollow where not every image has converged."""
    colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
    axes.plot(places, [e[metric]["mean"] for e in entries], color=colour, label=label, marker=marker)
    for x, entry in zip(places, entries):
        found = entry[metric]
        if found["low"] is not None:
            axes.vlines(x, found["low"], found["high"], color=colour, linewidth=0.9, alpha=0.6)
        if entry["converged"] < entry["images"]:
            axes.plot(x, found["mean"], color=colour, marker=marker, markerfacecolor="white")


def _numbers(entries: list[Any]) -> Table:
    parts = ("mean", "low", "high", "worst")
    metrics = [m for m in ("psnr", "ssim", "relative_error", "lpips") if any(e[m] for e in entries)]
    about = ("layer", "attacker", "noise", "images", "converged", "failed", "same_class")
    table: Table = [[*about, *(f"{metric}_{part}" for metric in metrics for part in parts), "most_exposed", "status"]]
    for e in entries:
        values = [(e[metric] or {}).get(part) for metric in metrics for part in parts]
        table.append([*(e[name] for name in about), *values, (e["ssim"] or {}).get("worst_file"), e["status"]])
    return table
