"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

A table stands between ``<!-- counts: FILE -->`` (statements per stage), ``<!-- layer: FILE -->`` (from the code to the
stage's own input) or ``<!-- image: FILE -->`` (to the image) and ``<!-- end -->``; ``FILE`` is under
``experiments/results``, without ``.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("information.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
LAYER = ("iht", "min-norm", "convex", "convex, smooth", "convex, gaussian", "convex, smooth, no switches")
LAYER_NAMES = (
    "one-step",
    "minimum norm",
    "convex",
    "convex, smooth",
    "convex, gaussian",
    "convex, smooth, no switches",
)
IMAGE = (
    ("one-step (switches)", "iht", "switches"),
    ("convex, chained (switches)", "convex", "switches"),
    ("Gauss-Newton, no side information", "gauss-newton", "none"),
    ("Gauss-Newton, switches", "gauss-newton", "switches"),
    ("Gauss-Newton, gates", "gauss-newton", "gates"),
)


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def counts(result: dict[str, Any]) -> str:
    """What each stage's code says."""
    header = ("stage", "unknowns", "equations", "inequalities", "equations / unknowns")
    rows = [
        [name, *(f"{said[key]:,}" for key in header[1:4]), f"{said['equations'] / said['unknowns']:.2f}"]
        for name, said in result["stages"].items()
    ]
    return table(header, rows)


def layer(result: dict[str, Any]) -> str:
    """Relative error of each decoder of a stage's own input."""
    found = {(r["stage"], r["method"]): r for r in result["rows"] if r["from"] == "layer"}
    shown = [(m, n) for m, n in zip(LAYER, LAYER_NAMES, strict=True) if any(method == m for _, method in found)]
    rows = [[name, *(cell(found.get((name, m))) for m, _ in shown)] for name in result["stages"]]
    return table(("stage", *(n for _, n in shown)), rows)


def image(result: dict[str, Any]) -> str:
    """Relative error, PSNR and time of each decoder of the image."""
    found = {(r["stage"], r["method"], r["side_info"]): r for r in result["rows"] if r["from"] == "image"}
    stages = [name for name in result["stages"] if any(stage == name for stage, _, _ in found)]
    rows = [[name, *(cell(found.get((name, *key))) for _, *key in IMAGE)] for name in stages]
    return table(("stage", *(title for title, *_ in IMAGE)), rows)


def cell(row: dict[str, Any] | None) -> str:
    """Error, and PSNR and seconds where there are some."""
    if row is None:
        return ""
    psnr = f"; {row['psnr']:.1f} dB" if "psnr" in row else ""
    seconds = f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.2g}"
    return f"{row['relative_error']:.3g}{psnr}; {seconds} s"


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {"counts": counts, "layer": layer, "image": image}


def fill(page: str) -> str:
    """The page with every table as the results have it."""

    def filled(found: re.Match[str]) -> str:
        file = RESULTS / f"{found[3]}.json"
        if not file.exists():
            return f"{found[1]}*Not run here.*\n{found[4]}"
        result = json.loads(file.read_text())
        made, images = result["environment"], result["finished"]
        count = "One image" if images == 1 else f"Mean over {images} images"
        note = f"{count}; {made['threads']} threads, torch {made['packages']['torch']}."
        below = "" if found[2] == "counts" else f"\n\n{note}"
        return f"{found[1]}{KINDS[found[2]](result)}{below}\n{found[4]}"

    return re.sub(r"(<!-- (counts|layer|image): (\S+) -->\n).*?(<!-- end -->)", filled, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
