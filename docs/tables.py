"""What the scripts ``fill_*.py`` share: Markdown tables, and the places of a page that committed results fill.

Such a place stands between ``<!-- KIND: NAME CHOICE -->`` and ``<!-- end -->``. ``CHOICE``, a JSON object that may be
missing, says what is shown of the results, which have all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "experiments" / "results"


def read(file: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table; floats with four significant digits, shapes as 3x32x32."""
    head, *lines = (f"| {' | '.join(map(_cell, row))} |" for row in (header, *rows))
    return "\n".join([head, "|" + "---|" * len(header), *lines])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "" if value is None else text.replace("|", "\\|").replace("\n", " ")


def filled(page: str, make: Callable[..., str]) -> str:
    """The page with what ``make(KIND, NAME, **CHOICE)`` says at every place."""

    def text(found: re.Match[str]) -> str:
        start, kind, name, choice, end = found.groups()
        return f"{start}{make(kind, name, **json.loads(choice or '{}'))}\n{end}"

    place = re.compile(r"(<!-- (\w+)(?:: (\S+))?(?: ({[^\n]*}))? -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(text, page)


def fill_page(name: str, make: Callable[..., str]) -> None:
    """Fill a page of this folder."""
    file = DOCS / name
    file.write_text(filled(file.read_text(encoding="utf-8"), make), encoding="utf-8")
