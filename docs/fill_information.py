"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

A table stands between ``<!-- counts: FILE -->`` (statements per conv block), ``<!-- layer: FILE -->`` (from the code to
the block's own input) or ``<!-- image: FILE ... -->`` (to the image) and ``<!-- end -->``; ``FILE`` is under
``experiments/results``, without ``.json``; of several, the blocks come one after the other.
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
    header = ("conv block", "unknowns", "equations", "inequalities", "equations / unknowns")
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
    return table(("conv block", *(n for _, n in shown)), rows)


def image(result: dict[str, Any]) -> str:
    """Relative error, PSNR and time of each decoder of the image."""
    found = {(r["stage"], r["method"], r["side_info"]): r for r in result["rows"] if r["from"] == "image"}
    stages = [name for name in result["stages"] if any(stage == name for stage, _, _ in found)]
    shown = [way for way in IMAGE if any(key[1:] == way[1:] for key in found)]
    rows = [[name, *(cell(found.get((name, *key))) for _, *key in shown)] for name in stages]
    return table(("layer", *(title for title, *_ in shown)), rows)


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
        files = [RESULTS / f"{name}.json" for name in found[3].split()]
        results = [json.loads(file.read_text()) for file in files if file.exists()]
        if not results:
            return f"{found[1]}*Not run here.*\n{found[4]}"
        whole = {
            "stages": {name: said for result in results for name, said in result["stages"].items()},
            "rows": [row for result in results for row in result["rows"]],
        }
        below = "" if found[2] == "counts" else f"\n\n{note(results)}"
        return f"{found[1]}{KINDS[found[2]](whole)}{below}\n{found[4]}"

    return re.sub(r"(<!-- (counts|layer|image): (\S+(?: \S+)*) -->\n).*?(<!-- end -->)", filled, page, flags=re.DOTALL)


def note(results: list[dict[str, Any]]) -> str:
    """How many images, and on what."""
    notes = []
    for result in results:
        made, images, steps = result["environment"], result["finished"], result["config"]["steps"]
        count = "one image" if images == 1 else f"mean over {images} images"
        done = "".join(f", {part.partition('=')[2]} steps of {part.partition('=')[0]}" for part in steps)
        where = f"{', '.join(result['stages'])}: " if len(results) > 1 else ""
        notes.append(f"{where}{count}{done}; {made['threads']} thread(s), torch {made['packages']['torch']}.")
    return " ".join(notes)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
