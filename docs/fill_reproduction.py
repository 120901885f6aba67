"""Fill the tables of reproduction.md from the committed results: ``python docs/fill_reproduction.py``.

A table stands between ``<!-- table: FILE -->`` and ``<!-- end -->``; ``FILE`` is under ``experiments/results``, without
``.json``. Every result names the command that made it, which is put under its table. Between ``<!-- decoders -->`` and
``<!-- end -->`` stands one row per trained decoder, from ``experiments/results/decoders``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unconv.paper.experiments import EXPERIMENTS
from unconv.reporting import text as words

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).parents[1] / "experiments" / "results"


def cell(value: Any) -> str:
    """One cell of a Markdown table."""
    return words.cell(value, "").replace("|", "\\|")


def markdown(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of one table."""
    lines = ["| " + " | ".join(map(cell, header)) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def read(file: Path) -> Any:
    """Return a result, with the name that a block had in older ones turned to the present one."""
    return json.loads(file.read_text(), object_hook=lambda d: {"block" if k == "stage" else k: v for k, v in d.items()})


def in_present_words(command: str) -> str:
    """Return the command as it is called now."""
    command = command.replace("python -m unconv.experiments.table1", "python experiments/table1.py")
    return command.replace("--stage ", "--layer ")


def tables(name: str) -> str:
    """The tables of one result and its command, or that there is none."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "*Not run here.*"
    result = read(file)
    found = EXPERIMENTS[result["name"]].tables(result)
    lines = []
    for caption, (header, rows) in found.items():
        lines += [f"*{caption}*", ""] if len(found) > 1 else []
        lines += markdown(header, rows)
    return "\n".join([*lines, f"`{in_present_words(result['command'])}`"])


def decoders() -> str:
    """What is known of every trained decoder, and its command."""
    header = ("decoder", "conv block", "images trained on", "held out", "steps", "validation loss", "relative error")
    rows, commands = [], []
    for file in sorted((RESULTS / "decoders").glob("*.json")):
        found = read(file)
        images, validation = found["images"], found["validation"]
        steps = found["curve"][-1]["step"]
        errors = (validation["loss"], validation["relative_error"])
        rows.append((file.stem, found["block"], images["training"], images["held_out"], steps, *errors))
        commands.append(f"`{in_present_words(found['command'])}`")
    return "\n".join([*markdown(header, rows), "\n\n".join(commands)]) if rows else "*Not run here.*"


def fill(page: str) -> str:
    """The page with every table as the results have it."""
    marked = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    page = marked.sub(lambda found: f"{found[1]}{tables(found[2])}\n{found[3]}", page)
    marked = re.compile(r"(<!-- decoders -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda found: f"{found[1]}{decoders()}\n{found[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
