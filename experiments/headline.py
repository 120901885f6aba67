"""The headline figure: how near a code lets one come, beside the paper's decoders, from committed results.

``python experiments/headline.py RESULT ... --out FILE`` takes what ``decoding`` wrote about VGG-19, and for images what
the former Gauss-Newton gave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unconv.paper.paper_values import TABLE_3, TABLE_3_IMAGE

LAYERS = {"features.5": "1", "features.10": "2"}
POOLS = {"features.2": "1", "features.7": "2", "features.16": "3"}
PAPER = {"input": "the paper's one step (VGG-16)", "image": "the paper's trained decoder\nbehind one step (VGG-16)"}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result; those of the first studies name a block "stage" and its input "layer"."""
    rows = []
    for row in result["rows"]:
        if "stage" in row:
            recover = "input" if row["from"] == "layer" else row["from"]
            row = row | {"block": row["stage"], "recover": recover}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Mark:
    """One way of decoding in the figure.

    Attributes:
        label: What the legend says.
        colour: Its colour.
        shape: Its marker.
    """

    label: str
    colour: str
    shape: str


LAYER_MARKS = {
    ("iht", "switches"): Mark("one step, ours", "#7f7f7f", "o"),
    ("min-norm", "switches"): Mark("least norm", "#56b4e9", "s"),
    ("convex", "switches"): Mark("equations and inequalities", "#0072b2", "^"),
    ("convex, gaussian", "switches"): Mark("and a covariance", "#009e73", "v"),
}
IMAGE_MARKS = {
    ("gauss-newton", "none"): Mark("features only", "#d55e00", "o"),
    ("gauss-newton", "switches"): Mark("switches known", "#e69f00", "s"),
    ("gauss-newton", "gates"): Mark("switches and gates known", "#cc79a7", "^"),
}


def draw(results: Iterable[dict[str, Any]]) -> Figure:
    """Mean relative errors on a logarithmic axis, above of a layer's input, below of the image."""
    rows = [row for result in results for row in rows_of(result)]
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    layers = {block: TABLE_3[number]["learned"] for block, number in LAYERS.items()}
    images = {block: TABLE_3_IMAGE[number]["learned"] for block, number in POOLS.items()}
    _panel(above, rows, "input", layers, {s: f"pool({n})\nfrom {s}" for s, n in LAYERS.items()}, LAYER_MARKS)
    _panel(below, rows, "image", images, {s: f"from pool({n})\n{s}" for s, n in POOLS.items()}, IMAGE_MARKS)
    above.set_title("A layer's input, from its own code", fontsize=10, loc="left")
    below.set_title("The image, from the features of a pooling, without training", fontsize=10, loc="left")
    below.set_xlabel("relative error (0.01 is one per cent; 1 is what an all-zero answer gets)")
    below.set(xlim=(0.006, 1.6), xticks=TICKS)
    below.set_xticklabels([f"{tick:g}" for tick in TICKS])
    return figure


def _panel(
    panel: Any,
    rows: list[dict[str, Any]],
    recovered: str,
    paper: dict[str, float],
    labels: dict[str, str],
    marks: dict[tuple[str, str], Mark],
) -> None:
    places = {block: -i for i, block in enumerate(paper)}
    for block, place in places.items():
        found = [r["relative_error"] for r in rows if (r["recover"], r["block"]) == (recovered, block)]
        panel.plot([min([*found, paper[block]]), paper[block]], [place] * 2, color="#dddddd", linewidth=3, zorder=0)
    panel.plot(list(paper.values()), list(places.values()), "kD", label=PAPER[recovered], markersize=8)
    for (method, known), mark in marks.items():
        chosen = [r for r in rows if (r["recover"], r["method"], r["side_info"]) == (recovered, method, known)]
        errors = {row["block"]: row["relative_error"] for row in chosen if row["block"] in places}
        heights = [places[block] for block in errors]
        panel.plot(list(errors.values()), heights, mark.shape, color=mark.colour, label=mark.label, markersize=8)
    panel.set(xscale="log", yticks=list(places.values()), ylim=(0.6 - len(paper), 0.5))
    panel.set_yticklabels([labels[block] for block in places], fontsize=8)
    panel.grid(True, axis="x", which="both", color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON of decoding")
    parser.add_argument("--out", type=Path, required=True, help="SVG or PNG to write")
    chosen = parser.parse_args()
    draw(json.loads(file.read_text()) for file in chosen.results).savefig(chosen.out, dpi=150)


if __name__ == "__main__":
    main()
