"""Fill the tables of benchmarks.md from ``benchmarks/bench.json``: ``python docs/fill_benchmarks.py``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parents[1] / "benchmarks"
NO_SIDE_INFORMATION = "*Not run here.*"


def spread(found: dict[str, float] | None) -> str:
    """Median and quartiles of a ratio."""
    return "not reached" if found is None else f"{found['median']:.3g} ({found['q1']:.3g} to {found['q3']:.3g})"


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; cells hold no line breaks or bars."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) if rows else NO_SIDE_INFORMATION


def floors(document: dict[str, Any]) -> str:
    """Every row with a floor."""
    found = [row for row in document["rows"] if row["kind"] == "floor"]
    shown = [(r["group"], r["setting"], ms(r["floor_seconds"]), spread(r["ratio"]), aim(r)) for r in found]
    return table(("step", "setting", "floor, ms", "ratio: median (quartiles)", "target"), shown)


def peers(document: dict[str, Any]) -> str:
    """Every row with a peer."""
    rows = []
    for row in document["rows"]:
        if row["kind"] == "peer":
            said = f"{spread(row['ratio'])}{'; ' + row['note'] if 'note' in row else ''}"
            setting = row["setting"].partition(";")[0]
            rows.append((row["group"], setting, row["peer"], row["method"], row["ours"], f"{row['error']:.3g}", said))
    header = (
        "problem",
        "setting",
        "peer",
        "its solver",
        "ours",
        "relative error",
        "its time / ours: median (quartiles)",
    )
    missing = [f"\nWithout {m['peer']}: {m['reason']} (`{m['install']}`)." for m in document["missing"]]
    return "\n".join([table(header, rows), *missing])


def targets(document: dict[str, Any]) -> str:
    """Every target beside what was measured."""
    rows = []
    for row in document["targets"]:
        word = f"at most {row['at_most']:g}" if "at_most" in row else f"at least {row['at_least']:g}"
        measured = "not reached" if row["measured"] is None else f"{row['measured']:.3g}"
        rows.append((row["group"], row["setting"], word, measured, "met" if row["met"] else "missed"))
    return table(("part", "setting", "target", "measured", ""), rows)


def profiles(document: dict[str, Any]) -> str:
    """Where the time of a row that misses its target goes."""
    rows = []
    for row in document["rows"]:
        if "profile" in row:
            said = ", ".join(f"`{p['operation']}` {p['percent']:.0f} % ({p['calls']})" for p in row["profile"])
            rows.append((f"{row['group']}: {row['setting']}", said))
    return table(("missed", "share of the time (calls)"), rows) if rows else "No step misses its target."


def setting(document: dict[str, Any]) -> str:
    """The command and the machine."""
    where = document["environment"]
    packages = where["packages"]
    buffers = "kept" if document["buffers_kept"] else "given back after every call"
    return (
        f"`{document['command']}`: {document['subject']}; {document['paired_runs']} paired runs, {where['cpus']} CPUs "
        f"({where['threads']} threads), GPU {where['gpu'] or 'none'}, torch {packages['torch']}, buffers {buffers}. "
        f"Peers: {', '.join(f'{name} {version}' for name, version in document['peers'].items()) or 'none'}."
    )


def ms(found: dict[str, float]) -> str:
    """Milliseconds."""
    return f"{1e3 * found['median']:.3g}"


def aim(row: dict[str, Any]) -> str:
    """A row's target."""
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:g}"
    return "" if row["at_least"] is None else f"≥ {row['at_least']:g}"


MADE: dict[str, Callable[[dict[str, Any]], str]] = {
    "setting": setting,
    "targets": targets,
    "figure": lambda _: "![Ratios of a benchmark run](bench.svg)",
    "floors": floors,
    "peers": peers,
    "profiles": profiles,
}


def fill(page: str, document: dict[str, Any] | None) -> str:
    """The page with every table as the results have it."""
    marked = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    made = {name: NO_SIDE_INFORMATION if document is None else make(document) for name, make in MADE.items()}
    return marked.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", page)


if __name__ == "__main__":
    file = RESULTS / "bench.json"
    PAGE.write_text(fill(PAGE.read_text(), json.loads(file.read_text()) if file.exists() else None))
    if (RESULTS / "bench.svg").exists():
        shutil.copyfile(RESULTS / "bench.svg", PAGE.with_name("bench.svg"))
