"""Fill the tables of breadth.md from ``benchmarks/breadth.json``: ``python docs/fill_breadth.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("breadth.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "breadth.json"
HEADER = ("model", "pixels", "conv blocks", "left out", "first block", "its input by minimum norm", "CPU s")
TIMM = "timm.models:"


def table(rows: list[dict[str, Any]]) -> str:
    """Every model that was tried, by name, with what came of it."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|--:|--:|---|---|--:|--:|"]
    for row in sorted(rows, key=lambda row: row["model"]):
        name = row["model"].removeprefix(TIMM)
        if "failed" in row:
            lines.append(f"| {name} | {row['size']} | | **stopped**: {row['failed']} | | | |")
            continue
        left_out = "; ".join(f"{count} {reason.partition(':')[0]}" for reason, count in row["skipped"].items())
        error = "–" if row["error"] is None else f"{row['error']:.2g}"
        cells = (name, row["size"], row["stages"], left_out, row["first"], error, f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """How many went through, and why a way of inverting gave nothing where it did."""
    good = [row for row in rows if "failed" not in row]
    reasons: dict[str, int] = {}
    for row in good:
        for reason, count in row["without_result"].items():
            # the same for every stage: what stands in quotes is its name
            said = re.sub(r"'[^']*'", "…", reason)
            reasons[said] = reasons.get(said, 0) + count
    lines = [f"{len(good)} of {len(rows)} models went through."]
    if reasons:
        lines.append("Where one way of inverting one block gave nothing, the report said why:")
        lines.append("")
        lines += [f"- {count} times: {reason}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1])]
    return "\n".join(lines)


def fill(page: str, document: dict[str, Any]) -> str:
    """The page with its tables.

    Args:
        page: The page, old tables or none between ``<!-- NAME -->`` and ``<!-- end -->``.
        document: What ``benchmarks/breadth.py`` wrote.

    Returns:
        The page.
    """
    timm = [row for row in document["rows"] if row["model"].startswith(TIMM)]
    rest = [row for row in document["rows"] if not row["model"].startswith(TIMM)]
    parts = {
        "summary": summary(document["rows"]),
        "torchvision": table(rest),
        "timm": table(timm) if timm else "None has been run yet.",
    }
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text())), encoding="utf-8")
