"""The figures of ``decoding``: error against time of the whole-network solvers, and a sheet of what they recover.

``python experiments/decoding_figures.py RESULT --curves FILE`` draws the curves of a result;
``--pictures FOLDER --sheet FILE`` composes the pictures that ``decoding --pictures`` has written.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from unconv.errors import UsageError

SIDE_INFO = ("none", "switches", "gates")
LINES = {
    "gauss-newton": ("Gauss-Newton", "#d55e00", "-"),
    "lbfgs": ("L-BFGS", "#0072b2", "--"),
    "adam": ("Adam", "#009e73", ":"),
}
COLUMNS = (
    ("iht", "switches", "one-step\n(switches)"),
    ("convex", "switches", "convex, chained\n(switches)"),
    ("gauss-newton", "none", "Gauss-Newton\n(no switches)"),
    ("gauss-newton", "switches", "Gauss-Newton\n(switches)"),
    ("gauss-newton", "gates", "Gauss-Newton\n(gates)"),
)


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result; those of the first studies name a block "stage" and its input "layer"."""
    rows = []
    for row in result["rows"]:
        if "stage" in row:
            recover = "input" if row["from"] == "layer" else row["from"]
            row = row | {"block": row["stage"], "recover": recover}
        rows.append(row)
    return rows


def curves(result: dict[str, Any]) -> Figure:
    """Error against time, one panel per block and side information, a line per image and solver."""
    rows = [row for row in rows_of(result) if row["method"] in LINES and row.get("curves")]
    if not rows:
        raise UsageError("the result holds no curve; run decoding with --image-methods gauss-newton adam lbfgs")
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    kinds = [known for known in SIDE_INFO if any(row["side_info"] == known for row in rows)]
    figure = Figure(figsize=(3.6 * len(kinds), 2.9 * len(blocks)), layout="constrained")
    panels = figure.subplots(len(blocks), len(kinds), squeeze=False, sharey="row")
    for line, block in zip(panels, blocks, strict=True):
        for panel, known in zip(line, kinds, strict=True):
            for row in rows:
                if (row["block"], row["side_info"]) == (block, known):
                    label, colour, dashes = LINES[row["method"]]
                    for i, curve in enumerate(row["curves"]):
                        seconds, errors = zip(*curve, strict=True)
                        panel.plot(
                            seconds, errors, dashes, color=colour, linewidth=1.2, label=None if i else label, alpha=0.9
                        )
            panel.set(
                xscale="log", yscale="log", title=f"{block}, {'no side information' if known == 'none' else known}"
            )
            panel.grid(True, which="both", color="#dddddd", linewidth=0.5)
            panel.set_xlabel("seconds per image")
        line[0].set_ylabel("relative error of the image")
    panels[0][0].legend(frameon=False)
    return figure


def sheet(folder: Path, result: dict[str, Any], *, width: int = 168) -> Figure:
    """Originals and what was recovered of them: a row per image and block, a column per way."""
    originals = sorted(folder.glob("*-original.png"))[: result["finished"]]
    cells = {
        (row["block"], row["method"], row["side_info"]): row for row in rows_of(result) if row["recover"] == "image"
    }
    blocks = list(dict.fromkeys(block for block, _, _ in cells))
    if not originals or not blocks:
        raise UsageError(f"no pictures of decoded images in {folder}; run decoding with --pictures {folder}")
    lines = [(original, block) for original in originals for block in blocks]
    columns = [c for c in COLUMNS if any((block, *c[:2]) in cells for block in blocks)]
    inch = width / 100
    figure = Figure(
        figsize=(inch * (len(columns) + 1), (inch + 0.22) * len(lines) + 0.45), dpi=150, layout="constrained"
    )
    panels = figure.subplots(len(lines), len(columns) + 1, squeeze=False)
    for panel, title in zip(panels[0], ("original", *(c[2] for c in columns)), strict=True):
        panel.set_title(title, fontsize=8)
    for line, (original, block) in zip(panels, lines, strict=True):
        index = int(re.match(r"\d+", original.name)[0])  # pyright: ignore[reportOptionalSubscript]
        _show(line[0], original, block)
        for panel, (method, known, _) in zip(line[1:], columns, strict=True):
            file = folder / f"{index:04d}-{block}-{method}-{known}.png"
            row = cells.get((block, method, known))
            if row is None or not file.exists():
                panel.axis("off")
                continue
            _show(panel, file, f"{row['errors'][index]:.3f}")
    return figure


def _show(panel: Any, file: Path, below: str) -> None:
    with Image.open(file) as picture:
        panel.imshow(np.asarray(picture))
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_xlabel(below, fontsize=8, labelpad=2)
    for side in panel.spines.values():
        side.set_visible(False)


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path, help="JSON of decoding")
    parser.add_argument("--curves", type=Path, help="SVG to write")
    parser.add_argument("--pictures", type=Path, help="folder that decoding has filled")
    parser.add_argument("--sheet", type=Path, help="JPEG or PNG to write")
    chosen = parser.parse_args()
    result = json.loads(chosen.result.read_text())
    if chosen.curves is not None:
        curves(result).savefig(chosen.curves)
    if chosen.sheet is not None:
        sheet(chosen.pictures, result).savefig(chosen.sheet)


if __name__ == "__main__":
    main()
