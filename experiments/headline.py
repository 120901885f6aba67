"""The headline figure: how near VGG-19's features let one come, beside the paper's decoders, from committed results.

``python experiments/headline.py --out docs/headline.svg`` reads what ``decoding.py`` (a block's own input) and
``linear_inversion.py`` (the image) have put into ``experiments/results/vgg19``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from unconv.paper.paper_values import TABLE_3, TABLE_3_IMAGE

RESULTS = Path(__file__).parent / "results" / "vgg19"
BLOCKS = {"features.5": "1", "features.10": "2"}
METHODS = {
    "iht": ("one step, ours", "#7f7f7f", "o"),
    "min-norm": ("least norm", "#56b4e9", "s"),
    "convex": ("equations and inequalities", "#0072b2", "^"),
    "convex, gaussian": ("and a covariance", "#009e73", "v"),
}
IMAGE = {"linear": ("linear decoder", "#d55e00", "o"), "refined": ("and 150 passes", "#cc79a7", "s")}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Errors = Mapping[str, Mapping[str, float]]


def draw(blocks: Mapping[str, Any], images: Mapping[str, Any]) -> Figure:
    """Mean relative errors on a logarithmic axis, above of a block's input, below of the image."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    found: dict[str, dict[str, float]] = {
        f"pool({number})\nfrom {name}": {"paper": TABLE_3[number]["learned"]} for name, number in BLOCKS.items()
    }
    for row in blocks["rows"]:
        found[f"pool({BLOCKS[row['block']]})\nfrom {row['block']}"][row["method"]] = row["relative_error"]
    _panel(above, found, {"paper": ("the paper's one step (VGG-16)", "k", "D"), **METHODS})
    above.set_title("A conv block's input, from its own code with known switches", fontsize=10, loc="left")
    found = {}
    for name, layer in images["layers"].items():
        number = name.removeprefix("pool")
        refined = fmean(image["errors"][-1] for image in layer["refined"]["none"])
        found[f"from pool({number})"] = {
            "paper": TABLE_3_IMAGE[number]["learned"], "linear": fmean(layer["linear"]), "refined": refined
        }  # fmt: skip
    _panel(below, found, {"paper": ("the paper's trained decoder\nbehind one step (VGG-16)", "k", "D"), **IMAGE})
    below.set_title("The image, from the features of a pooling alone", fontsize=10, loc="left")
    below.set_xlabel("relative error (0.01 is one per cent; 1 is what an all-zero answer gets)")
    below.set(xlim=(0.007, 1.6), xticks=TICKS)
    below.set_xticklabels([f"{tick:g}" for tick in TICKS])
    return figure


def _panel(panel: Any, errors: Errors, marks: Mapping[str, tuple[str, str, str]]) -> None:
    for place, values in enumerate(errors.values()):
        panel.plot([min(values.values()), values["paper"]], [-place] * 2, color="#dddddd", linewidth=3, zorder=0)
    for method, (label, colour, shape) in marks.items():
        points = [(values[method], -place) for place, values in enumerate(errors.values()) if method in values]
        panel.plot(*zip(*points, strict=True), shape, color=colour, label=label, markersize=8)
    panel.set(xscale="log", yticks=[-place for place in range(len(errors))], ylim=(0.6 - len(errors), 0.5))
    panel.set_yticklabels(list(errors), fontsize=8)
    panel.grid(True, axis="x", which="both", color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="SVG or PNG to write")
    chosen = parser.parse_args()
    blocks, images = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("decoding", "linear-inversion"))
    draw(blocks, images).savefig(chosen.out, dpi=150)


if __name__ == "__main__":
    main()
