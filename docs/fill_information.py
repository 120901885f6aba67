"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

A table, from the code of each conv block to the block's own input, stands between ``<!-- block: FILE CHOICE -->`` and
``<!-- end -->``; ``FILE``, of ``experiments/decoding.py``, is under ``experiments/results``, without ``.json``.
``CHOICE``, a JSON object, may name the conv blocks, ``rows``, that the table shows; all are in the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("information.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
METHODS = {
    "iht": "one-step",
    "min-norm": "minimum norm",
    "convex": "convex",
    "convex, gaussian": "convex, gaussian",
}


def table(result: dict[str, Any], rows: Iterable[str] = ()) -> str:
    """Equations per unknown of each conv block, and the relative error of each decoder of its input."""
    found = {(row["block"], row["method"]): row["relative_error"] for row in result["rows"]}
    shown = {method: name for method, name in METHODS.items() if any(method == m for _, m in found)}
    header = ("conv block", "equations per unknown", *shown.values())
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in rows or result["blocks"]:
        said = result["blocks"][name]
        cells = (f"{said['equations'] / said['unknowns']:.2f}", *(f"{found[name, method]:.3g}" for method in shown))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page with every table as the results have it."""

    def filled(found: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{found[2]}.json").read_text())
        return f"{found[1]}{table(result, **json.loads(found[3] or '{}'))}\n{found[4]}"

    marked = re.compile(r"(<!-- block: (\S+)(?: ({[^\n]*}))? -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(filled, page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
