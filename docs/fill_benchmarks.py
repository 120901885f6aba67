"""Fill the tables of benchmarks.md from ``benchmarks/{floors,peers}.json``: ``python docs/fill_benchmarks.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parents[1] / "benchmarks"

Document = dict[str, Any]


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; cells hold no line breaks or bars."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def floors(document: Document) -> str:
    """Every step beside its floor, and its target."""
    rows = []
    for row in document["rows"]:
        low, high = row["quartiles"]
        target = row["target"]
        verdict = "" if target is None else f"≤ {target:g}, {'met' if row['ratio'] <= target else 'missed'}"
        ratio = f"{row['ratio']:.3g} ({low:.3g} to {high:.3g})"
        rows.append((row["name"], row["setting"], f"{1e3 * row['floor']:.3g}", ratio, verdict))
    return table(("step", "setting", "floor, ms", "ratio: median (quartiles)", "target"), rows)


def profiles(document: Document) -> str:
    """The share of convolutions and poolings in the time of the steps that miss their target."""
    shares: dict[str, list[float]] = {}
    for row in document["rows"]:
        if "profile" in row:
            counted = (e["percent"] for e in row["profile"] if "conv" in e["operation"] or "pool" in e["operation"])
            shares.setdefault(row["name"], []).append(sum(counted))
    said = (f"{name} {' to '.join(f'{s:.0f}' for s in sorted({min(v), max(v)}))} %" for name, v in shares.items())
    return f"Convolutions and poolings take: {'; '.join(said)}." if shares else "No step misses its target."


def peers(document: Document) -> str:
    """Every peer beside ours."""
    rows = []
    for row in document["rows"]:
        ratio = "not reached by ours" if row["steps"]["ours"] is None else "not reached by the peer"
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.3g}"
        steps = f"{row['steps']['ours'] or '-'} / {row['steps']['peer'] or '-'}"
        rows.append((row["name"], f"{row['peer']}, {row['method']}", f"{row['error']:.3g}", steps, ratio))
    return table(("problem, ours", "peer", "relative error", "steps ours / peer", "its time by ours"), rows)


def short(floors: Document, peers: Document) -> str:
    """What the tables say, in three sentences."""
    kinds = {
        "one-step IHT": "IHT",
        "a step of IHT": "IHT",
        "a step of the convex decoder": "the convex decoder",
        "J and J^T": "Jacobian products",
        "20480 ratios of model-RIP": "sampled model-RIP",
    }
    ratios: dict[str, list[float]] = {}
    for row in floors["rows"]:
        ratios.setdefault(kinds[row["name"]], []).append(row["ratio"])
    said = "; ".join(f"{kind} {min(found):.2g} to {max(found):.2g}" for kind, found in ratios.items())
    aimed = [row["ratio"] <= row["target"] for row in floors["rows"] if row["target"] is not None]
    theirs = [row["ratio"] for row in peers["rows"] if row["ratio"] is not None]
    return (
        f"Our time by that of the bare calls: {said}. {sum(aimed)} of {len(aimed)} targets are met. Other libraries "
        f"take {min(theirs):.2g} to {max(theirs):.2g} times our time to the same error."
    )


def setting(document: Document) -> str:
    """The machine and the versions."""
    where = document["environment"]
    return (
        f"{where['cpus']} CPUs ({where['threads']} threads), torch {where['packages']['torch']}, {document['side']} px."
    )


def fill(page: str) -> str:
    """The page with every table as the results have it."""
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("floors", "peers")}
    made = {
        "short": short(results["floors"], results["peers"]),
        "setting": setting(results["floors"]),
        "floors": floors(results["floors"]),
        "profiles": profiles(results["floors"]),
        "peers": peers(results["peers"]),
    }
    marked = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
