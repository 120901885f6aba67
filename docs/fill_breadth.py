"""Fill the tables of breadth.md from ``benchmarks/breadth.json``: ``python docs/fill_breadth.py``."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("breadth.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "breadth.json"
HEADER = ("model", "layers", "conv blocks", "first", "last map", "embedding", "left out")
TIMM = "timm/"


def table(rows: list[dict[str, Any]]) -> str:
    """Every model that was tried, by name, with what came of it."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|--:|--:|--:|--:|--:|---|"]
    for row in sorted(rows, key=lambda row: row["model"]):
        name = row["model"].removeprefix(TIMM)
        if "failed" in row:
            lines.append(f"| {name} | | | | | | **stopped**: {row['failed']} |")
            continue
        left_out = "; ".join(f"{count} {reason.partition(':')[0]}" for reason, count in row["skipped"].items())
        errors = [_error(row["inverted"][role]["linear"]) for role in ("first", "last", "embedding")]
        cells = [name, row["layers"], row["blocks"], *errors, left_out]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """How many went through, how far blocks are from the network at most, and why a layer was not inverted."""
    good = [row for row in rows if "failed" not in row]
    lines = [f"{len(good)} of {len(rows)} models went through."]
    checked = [(row["difference"]["relative"], row) for row in good if row["difference"]]
    if checked:
        most, row = max(checked, key=lambda pair: pair[0])
        blocks = sum(row["blocks"] for row in good)
        lines.append(
            f"The largest difference of any of {blocks:,} conv blocks from the network's own output is {most:.1e} of "
            f"its largest value (`{row['difference']['block']}` of {row['model']})."
        )
    reasons: Counter[str] = Counter()
    for row in good:
        for reason, count in row["without_result"].items():
            reasons[reason] += count
    lines += [f"\n- {count} times no result: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _error(error: float | None) -> str:
    return "–" if error is None else f"{error:.2g}"


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
