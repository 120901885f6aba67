"""Fill the tables of reproduction.md from the committed results: ``python docs/fill_reproduction.py``.

A table stands between ``<!-- table: FILE -->`` and ``<!-- end -->``; ``FILE`` is under ``experiments/results``, without
``.json``. Every result names the command that made it, which is put under its table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from unconv.verbs.reproduce import PARTS

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"


def cell(value: Any) -> str:
    """One cell of a Markdown table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|")


def tables(name: str) -> str:
    """The tables of one result and its command, or that there is none."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "*Not run here.*"
    result = json.loads(file.read_text())
    lines = []
    for header, rows in PARTS[result["name"]].tables(result).values():
        lines += ["| " + " | ".join(map(cell, header)) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows] + [""]
    return "\n".join([*lines, f"`{result['command']}`"])


def fill(page: str) -> str:
    """The page with every table as the results have it."""
    marked = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda found: f"{found[1]}{tables(found[2])}\n{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
