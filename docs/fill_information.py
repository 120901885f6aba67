"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

A table stands between ``<!-- counts: FILE -->`` (what each conv block's code says) or ``<!-- block: FILE -->`` (from
the code to the block's own input) and ``<!-- end -->``; ``FILE``, of ``experiments/decoding.py``, is under
``experiments/results``, without ``.json``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("information.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
METHODS = {
    "iht": "one-step",
    "min-norm": "minimum norm",
    "convex": "convex",
    "convex, smooth": "convex, smooth",
    "convex, gaussian": "convex, gaussian",
}


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def counts(result: dict[str, Any]) -> str:
    """What each block's code says."""
    header = ("conv block", "unknowns", "equations", "inequalities", "equations / unknowns")
    rows = [
        [name, *(f"{said[key]:,}" for key in header[1:4]), f"{said['equations'] / said['unknowns']:.2f}"]
        for name, said in result["blocks"].items()
    ]
    return table(header, rows)


def block(result: dict[str, Any]) -> str:
    """Relative error and seconds of each decoder of a block's own input."""
    found = {(row["block"], row["method"]): row for row in result["rows"]}
    shown = {method: name for method, name in METHODS.items() if any(method == m for _, m in found)}
    rows = [[name, *(cell(found[name, method]) for method in shown)] for name in result["blocks"]]
    said = f"mean over {result['finished']} images; seconds per image on one thread of a busy machine."
    return table(("conv block", *shown.values()), rows) + f"\n\n{said}"


def cell(row: dict[str, Any]) -> str:
    """Error and seconds."""
    seconds = f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.2g}"
    return f"{row['relative_error']:.3g}; {seconds} s"


def fill(page: str) -> str:
    """The page with every table as the results have it."""
    marked = re.compile(r"(<!-- (counts|block): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    kinds = {"counts": counts, "block": block}
    return marked.sub(
        lambda m: f"{m[1]}{kinds[m[2]](json.loads((RESULTS / f'{m[3]}.json').read_text()))}\n{m[4]}", page
    )


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
