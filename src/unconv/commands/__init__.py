"""One short file per verb: a function of ``unconv.api``, called with options; its result as a document and as text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any


def print_skipped(images: Iterable[Mapping[str, str]]) -> None:
    """Name on stderr the images that were left out."""
    for image in images:
        print(f"skipped {image['file']}: {image['reason']}", file=sys.stderr)


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table for a terminal: numbers to the right, a dash for ``None``; columns of nothing are left out."""
    rows = list(rows)
    kept = [i for i in range(len(header)) if not rows or any(row[i] is not None for row in rows)]
    header = [header[i] for i in kept]
    body = [[_cell(row[i]) for i in kept] for row in rows]
    heads = [list(line) for line in zip_longest(*(title.split("\n") for title in header), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*heads, *body, strict=True)]
    left = [all(not _is_number(row[i]) for row in body) for i in range(len(header))]
    lines = []
    for row in [*heads, *body]:
        cells = [c.ljust(w) if l else c.rjust(w) for c, w, l in zip(row, widths, left, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "").replace("e", "").replace("+", "").isdigit()
