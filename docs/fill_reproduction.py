"""Fill the tables of reproduction.md from the committed results: ``python docs/fill_reproduction.py``.

A table stands between ``<!-- table: FILE CHOICE -->`` and ``<!-- end -->``; ``FILE`` is under ``experiments/results``,
without ``.json``. ``CHOICE``, a JSON object, may name ``tables`` by their captions, ``columns`` by their numbers (by
caption where there are several tables), and texts, ``without``, whose rows are left out. Every result names the command
that made it, which is put under its table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unconv.paper.experiments import EXPERIMENTS

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"
VGG19 = "--model vgg19 --weights vgg19-blocks1-3.safetensors --mean 123.68,116.779,103.939 --std 1"
DECODERS = " ".join(f"experiments/decoders/vgg19-caffe-features.{n}.safetensors" for n in (2, 7, 16))


def cell(value: Any) -> str:
    """One cell of a Markdown table: floats with four significant digits, shapes as 3x32x32."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "" if value is None else text.replace("|", "\\|")


def markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of one table."""
    lines = ["| " + " | ".join(map(cell, header)) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def tables(name: str, choice: Mapping[str, Any]) -> str:
    """The chosen part of one result's tables and its command, or that there is none."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "*Not run here.*"
    result = json.loads(file.read_text())
    found = EXPERIMENTS[result["name"]].tables(result)
    captions = choice.get("tables", list(found))
    lines = []
    for caption in captions:
        header, rows = found[caption]
        columns = choice.get("columns", range(len(header)))
        columns = columns[caption] if isinstance(columns, dict) else columns
        rows = [[row[i] for i in columns] for row in rows if not set(choice.get("without", ())) & set(map(str, row))]
        lines += [f"*{caption}*", ""] if len(captions) > 1 else []
        lines += markdown([header[i] for i in columns], rows)
    if len(result.get("commands", ())) > 1:
        return "\n".join([*lines, f"The commands stand in `experiments/results/{name}.json`."])
    command = result["command"].replace(VGG19, "$VGG19").replace(DECODERS, "$DECODERS")
    return "\n".join([*lines, f"`{command}`"])


def fill(page: str) -> str:
    """The page with every table as the results have it."""
    marked = re.compile(r"(<!-- table: (\S+)(?: ({[^\n]*}))? -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda m: f"{m[1]}{tables(m[2], json.loads(m[3] or '{}'))}\n{m[4]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
