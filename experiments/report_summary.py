"""Means of a report, small enough to be kept: ``python experiments/report_summary.py RUN --out FILE``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from unconv.evaluate.evaluation import summarise
from unconv.evaluate.reconstruction import Task
from unconv.io import write_json

SETTINGS = ("model", "weights", "preprocessing", "layers", "budget", "passes", "batch", "seed", "reference_images")


def main() -> None:
    """Read a run directory, average over its images, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = pq.read_table(options.run / "results.parquet").to_pylist()
    names = Task(layer="").fields()
    tasks = dict.fromkeys(Task(**{name: row[name] for name in names}) for row in rows)
    config = json.loads((options.run / "config.json").read_text(encoding="utf-8"))
    document = {
        "settings": {name: config.get(name) for name in SETTINGS} | {"images": config["images"]["count"]},
        "environment": json.loads((options.run / "environment.json").read_text(encoding="utf-8")),
        "rows": summarise(rows, list(tasks)),
    }
    write_json(options.out, document)


if __name__ == "__main__":
    main()
