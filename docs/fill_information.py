"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

A table, from the code of each conv block to the block's own input, stands at ``<!-- block: FILE CHOICE -->``; ``FILE``,
of ``experiments/decoding.py``, is under ``experiments/results``, without ``.json``. ``CHOICE`` may name the conv
blocks, ``rows``, that the table shows.
"""

from __future__ import annotations

from collections.abc import Iterable

from tables import RESULTS, fill_page, markdown, read

METHODS = {
    "iht": "one-step",
    "min-norm": "minimum norm",
    "convex": "convex",
    "convex, gaussian": "convex, gaussian",
}


def made(kind: str, name: str, rows: Iterable[str] = ()) -> str:
    """Equations per unknown of each conv block, and the relative error of each decoder of its input."""
    result = read(RESULTS / f"{name}.json")
    found = {(row["block"], row["method"]): row["relative_error"] for row in result["rows"]}
    shown = {method: name for method, name in METHODS.items() if any(method == m for _, m in found)}
    lines = []
    for block in rows or result["blocks"]:
        said = result["blocks"][block]
        errors = (f"{found[block, method]:.3g}" for method in shown)
        lines.append((block, f"{said['equations'] / said['unknowns']:.2f}", *errors))
    return markdown(("conv block", "equations per unknown", *shown.values()), lines)


if __name__ == "__main__":
    fill_page("information.md", made)
