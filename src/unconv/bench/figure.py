"""The ratios of a benchmark as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MET, MISSED, PLAIN = "#2a7f4f", "#c0392b", "#4c6a92"
WIDEST = 58  # characters of a label


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Medians with quartiles and range: steps beside their floors, sampling, and peers beside ours.

    Args:
        rows: Rows of the JSON, those without a ratio are left out.

    Returns:
        The figure.
    """
    timed = [row for row in rows if row["ratio"] is not None]
    panels = [
        ("seconds of ours / of the bare calls", [r for r in timed if r["kind"] == "floor" and not _sampled(r)]),
        ("samples per second of ours / of the dense calls", [r for r in timed if _sampled(r)]),
        ("seconds of the peer / of ours, to equal error", [r for r in timed if r["kind"] == "peer"]),
    ]
    panels = [(title, found) for title, found in panels if found]
    heights = [len(found) + 1.5 for _, found in panels] or [1]
    figure = Figure(figsize=(10.5, 0.34 * sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(max(len(panels), 1), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, found) in zip(axes, panels):
        _panel(axis, title, found)
    return figure


def _sampled(row: dict[str, Any]) -> bool:
    return row["group"] == "rip-sampling"


def _panel(axis: Axes, title: str, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        ratio, colour = row["ratio"], {True: MET, False: MISSED, None: PLAIN}[row.get("met")]
        axis.plot([ratio["min"], ratio["max"]], [place, place], color=colour, linewidth=1)
        axis.plot([ratio["q1"], ratio["q3"]], [place, place], color=colour, linewidth=5, solid_capstyle="butt")
        axis.plot(ratio["median"], place, "o", color="white", markeredgecolor=colour, markersize=6, zorder=3)
        axis.annotate(
            f"{ratio['median']:.3g}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colour,
        )
        target = row.get("at_most") or row.get("at_least")
        if target:
            axis.plot([target, target], [place - 0.4, place + 0.4], color="black", linewidth=1.2)
    axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axis.set_xscale("log")
    _ticks(axis, rows)
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def _ticks(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ends = [value for row in rows for value in (row["ratio"]["min"], row["ratio"]["max"])]
    ends += [row.get("at_most") or row.get("at_least") or 1.0 for row in rows]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    narrow = (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3)
    wide = tuple(d * 10.0**e for e in range(-3, 6) for d in ((1, 2, 5) if high / low < 300 else (1,)))
    ticks = [t for t in (narrow if high / low < 3 else wide) if low / 1.3 <= t <= high * 1.3]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(low / 1.06, high * 1.06)


def _label(row: dict[str, Any]) -> str:
    if row["kind"] == "peer":
        words = f"{row['group']}: {row['peer']}, {row['method']}"
        words += ", switches" if "switches known" in row["setting"] and row["group"] == "image" else ""
    else:
        words = f"{row['group']}: {row['setting']}"
    return words if len(words) <= WIDEST else words[: WIDEST - 1] + "…"
