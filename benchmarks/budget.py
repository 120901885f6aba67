"""Every network of the breadth table through ``unconv report MODEL --size 64 --budget 20s``, one photograph.

``python benchmarks/budget.py`` fills ``benchmarks/budget.json`` network by network, each in a process of its own, with
random weights; run again, it goes on where it was stopped. It answers: does a report end in time, with a complete page,
and does refinement end better than the linear estimate that it starts from?
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from breadth import SIZE, SIZES, Row, chosen, run

BUDGET = 20  # seconds
LIMIT = 300  # seconds, after which a network is given up


def attempt(model: str) -> Row:
    """Run one report.

    Returns:
        Wall-clock seconds of the process, start and page with it; layers in the results; whether a page was there;
        per status of the refined results their number, and how many of them have a larger error than the linear
        estimate. ``failed``, the last line of the error, where it stopped.
    """
    size = SIZES.get(model, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        words = ["report", model, "--limit", "1", "--budget", f"{BUDGET}s", "--out", folder]
        words += [] if size is None else ["--size", str(size)]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "unconv", *words], capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return {"model": model, "size": size, "seconds": LIMIT, "failed": f"no end within {LIMIT} s"}
        row = {"model": model, "size": size, "seconds": round(time.perf_counter() - start, 1)}
        if done.returncode:
            return row | {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        rows = pq.read_table(Path(folder) / "results.parquet").to_pylist()
        page = (Path(folder) / "report.html").exists()
    linear = {r["layer"]: r["relative_error"] for r in rows if r["method"] == "linear"}
    refined = [r for r in rows if r["method"] == "gauss-newton" and r["relative_error"] is not None]
    worse = sum(r["relative_error"] > 1.001 * (linear.get(r["layer"]) or float("inf")) for r in refined)
    statuses = dict(Counter(r["status"] for r in refined))
    return row | {"layers": len({r["layer"] for r in rows}), "page": page, "refined": statuses, "worse": worse}


def about(rows: list[Row]) -> dict[str, Any]:
    """Summarise what ended and how."""
    ended = [row for row in rows if "failed" not in row]
    summary = {
        "ended": len(ended),
        "failed": len(rows) - len(ended),
        "median_seconds": median([row["seconds"] for row in ended]) if ended else None,
        "longest_seconds": max((row["seconds"] for row in ended), default=None),
        "refined": sum(sum(row["refined"].values()) for row in ended),
        "worse_than_linear": sum(row["worse"] for row in ended),
    }
    return {"command": "python benchmarks/budget.py", "summary": summary}


if __name__ == "__main__":
    run(*chosen((__doc__ or "").splitlines()[0], Path(__file__).with_suffix(".json")), attempt, about)
