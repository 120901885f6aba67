"""Fill breadth.csv and the summary in breadth.md from ``benchmarks/breadth.json``: ``python docs/fill_breadth.py``."""

from __future__ import annotations

import csv
import re
import statistics
from collections import Counter
from typing import Any

from tables import DOCS, fill_page, read

HEADER = ("model", "layers", "conv blocks", "first layer", "last map", "embedding", "left out")
ROLES = ("first", "last", "embedding")
TIMM = "timm/"

Rows = list[dict[str, Any]]


def table(rows: Rows) -> list[tuple[object, ...]]:
    """Every model that was tried, by name, with what came of it."""
    lines: list[tuple[object, ...]] = [HEADER]
    for row in rows:
        if "failed" in row:
            lines.append((row["model"], "", "", "", "", "", f"stopped: {row['failed']}"))
            continue
        left_out = "; ".join(f"{count} {re.split('[:;]', reason)[0]}" for reason, count in row["skipped"].items())
        errors = (row["inverted"][role]["linear"] for role in ROLES)
        shown = ("" if error is None else f"{error:.2g}" for error in errors)
        lines.append((row["model"], row["layers"], row["blocks"], *shown, left_out))
    return lines


def summary(rows: Rows) -> str:
    """How many went through, how far blocks are from the network at most, what was left out, median errors."""
    good = [row for row in rows if "failed" not in row]
    from_timm = sum(row["model"].startswith(TIMM) for row in rows)
    sources = f"{len(rows) - from_timm} of torchvision, {from_timm} of timm"
    lines = [f"- {len(good)} of {len(rows)} models went through ({sources})."]
    checked = [(row["difference"]["relative"], row) for row in good if row["difference"]]
    if checked:
        most, row = max(checked, key=lambda pair: pair[0])
        blocks = sum(row["blocks"] for row in good)
        lines.append(
            f"- The largest difference of any of {blocks:,} conv blocks from the network's own output is {most:.1e} of "
            f"its largest value (`{row['difference']['block']}` of {row['model']})."
        )
    skipped = sum(count for row in good for count in row["skipped"].values())
    lines.append(
        f"- {skipped} convolutions are no conv block; the table has the reasons. Their outputs are layers all the same."
    )
    medians = []
    for role in ROLES:
        errors = [row["inverted"][role]["linear"] for row in good]
        medians.append(f"{statistics.median(error for error in errors if error is not None):.2g}")
    lines.append(
        "- Median relative error of the linear decoder: {} at the first layer, {} at the last map, {} at the pooled "
        "embedding.".format(*medians)
    )
    reasons: Counter[str] = Counter()
    for row in good:
        reasons.update(row["without_result"])
    lines += [f"- {count} times no result: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main() -> None:
    """Write both files."""
    rows = read(DOCS.parent / "benchmarks" / "breadth.json")["rows"]
    rows.sort(key=lambda row: (row["model"].startswith(TIMM), row["model"]))
    with (DOCS / "breadth.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table(rows))
    fill_page("breadth.md", lambda kind, name: summary(rows))


if __name__ == "__main__":
    main()
