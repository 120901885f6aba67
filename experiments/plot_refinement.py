"""Error against passes and against time, as an SVG: ``python experiments/plot_refinement.py RESULTS.json OUT.svg``.

``RESULTS.json`` comes from ``linear_inversion.py``. Lines are means over images; a ring marks the number of passes that
calibration on reference images chose where it is not the last one.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

STYLES = {"none": "-", "switches": "--", "gates": ":"}


def main(source: str, target: str) -> None:
    """Draw one line per layer and kind of side information."""
    with open(source) as file:
        result = json.load(file)
    plt.rcParams |= {"svg.hashsalt": "refinement", "font.size": 9}
    figure, (by_pass, by_time) = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True, layout="constrained")
    for number, (layer, row) in enumerate(result["layers"].items()):
        for kind, images in row["refined"].items():
            errors, seconds = (
                torch.tensor([image[name] for image in images]).mean(0) for name in ("errors", "seconds")
            )
            marks, chosen = images[0]["marks"], row["chosen"][kind]
            style = {"color": f"C{number}", "linestyle": STYLES[kind], "linewidth": 1.4}
            by_pass.plot(marks, errors, label=f"{layer}, {kind}", **style)
            by_time.plot(seconds, errors, **style)
            if chosen < marks[-1]:
                place = max(n for n, mark in enumerate(marks) if mark <= max(chosen, 1))
                by_pass.plot(marks[place], errors[place], "o", mfc="none", color=f"C{number}")
    by_pass.set(
        xlabel="passes per image",
        ylabel="relative error",
        xscale="log",
        yscale="log",
        title="linear estimate at one pass",
    )
    by_time.set(xlabel="processor seconds per image, one thread", title="setup and calibration not counted")
    for axes in (by_pass, by_time):
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_pass.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
