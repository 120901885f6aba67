"""All rows of a benchmark, their targets, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from unconv.bench.buffers import kept
from unconv.bench.floors import FLOORS
from unconv.bench.image_problem import TARGET as IMAGE_TARGET
from unconv.bench.image_problem import image_problem
from unconv.bench.layer_problem import TARGET as LAYER_TARGET
from unconv.bench.layer_problem import layer_problem
from unconv.bench.peers import fastest, look_for_peers
from unconv.bench.sparse_problem import sparse_problem
from unconv.bench.subject import BenchSubject
from unconv.runs.directory import environment

Problem = Callable[..., list[dict[str, Any]]]
PROBLEMS: dict[str, Problem] = {"layer": layer_problem, "sparse": sparse_problem, "image": image_problem}
TARGETS = {"layer": LAYER_TARGET, "image": IMAGE_TARGET}
NEEDED = {"layer": ("pylops", "deepinv"), "sparse": ("scikit-learn", "sporco"), "image": ()}
NAMES = (*FLOORS, *PROBLEMS)
UNITS = {"layer": 4, "sparse": 2, "image": 8}  # calls of ``done`` of each problem; a floor calls it once


def bench(
    subject: BenchSubject,
    names: Sequence[str],
    runs: int,
    *,
    command: str,
    done: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure.

    Args:
        subject: What is worked on.
        names: Some of ``NAMES``.
        runs: Number of paired runs.
        command: What the user called, kept with the results.
        done: Told what has been done.
        keep: Given the document after each part, so that an interruption loses one part at most.

    Returns:
        The JSON document.
    """
    there, missing = look_for_peers()
    wanted = {peer for name in names for peer in NEEDED.get(name, ())}
    rows: list[dict[str, Any]] = []
    document = {
        "command": command,
        "subject": subject.words,
        "paired_runs": runs,
        "rows": rows,
        "targets": [],
        "missing": [asdict(m) for m in missing if m.peer in wanted],
        "peers": {name: version for name, version in there.items() if name in wanted},
        "buffers_kept": kept(),
        "environment": environment() | {"tf32": torch.backends.cuda.matmul.allow_tf32},
    }
    for name in names:
        if name in FLOORS:
            rows += FLOORS[name](subject, runs)
            done(name)
        else:
            rows += PROBLEMS[name](subject, runs, there, done)
        document["targets"] = _targets(rows)
        keep(document)
    return document


def _targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target: of each row with a floor, and of the fastest peer of each problem."""
    found = []
    for row in rows:
        for bound in ("at_most", "at_least"):
            if row.get(bound) is not None:
                measured = row["ratio"]["median"]
                found.append({key: row[key] for key in ("group", "setting", bound)} | {"measured": measured})
                found[-1]["met"] = row["met"]
    peers = [row for row in rows if row["kind"] == "peer"]
    for group, setting in dict.fromkeys((row["group"], row["setting"]) for row in peers):
        near = fastest([row for row in peers if row["setting"] == setting], TARGETS.get(group))
        found += [] if near is None else [near]
    return found
