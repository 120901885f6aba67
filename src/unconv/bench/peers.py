"""Other people's solvers on the same work: which are installed, and time to equal error."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from unconv.bench.timing import paired_seconds, ratio_row

PEERS = {
    "pylops": "pylops",
    "deepinv": "deepinv.optim",
    "sporco": "sporco.admm.cbpdn",
    "scikit-learn": "sklearn.linear_model",
}
"""Distribution, and a module of it that the peer's solvers need."""

INSTALL = "pip install 'unconv[bench]'"
SLACK = 1.05  # how near to the best error that a peer reaches counts as reaching it

Solve = Callable[[int], Tensor]


@dataclass(frozen=True)
class Missing:
    """A peer that cannot be run here.

    Attributes:
        peer: Its name.
        reason: What importing it said.
        install: How to get it.
    """

    peer: str
    reason: str
    install: str = INSTALL


def look_for_peers() -> tuple[dict[str, str], list[Missing]]:
    """Import every peer.

    Returns:
        The versions of those that are there, and those that are missing.
    """
    found, missing = {}, []
    for name, module in PEERS.items():
        try:
            importlib.import_module(module)
            found[name] = metadata.version(name)
        except Exception as error:  # a peer that breaks on import is as good as absent, and no failure of ours
            missing.append(Missing(name, " ".join(f"{type(error).__name__}: {error}".split())))
    return found, missing


@dataclass(frozen=True)
class Contest:
    """One problem, our solver for it, and the error that counts.

    Attributes:
        group: Name of the problem.
        setting: What it is, in words.
        error: Relative error of an estimate.
        ours: Our solver: from a number of steps to an estimate.
        name: Its name.
        limit: Largest number of its steps.
        at_least: How many times faster than the fastest peer it should be, or ``None``.
    """

    group: str
    setting: str
    error: Callable[[Tensor], float]
    ours: Solve
    name: str
    limit: int
    at_least: float | None = None

    def against(
        self, peer: str, method: str, solve: Solve, limit: int, runs: int, device: torch.device
    ) -> dict[str, Any]:
        """Time a peer to the best error that it reaches (within 5 %), and ours to the same error.

        Both make the fewest steps that reach it, found before the clock runs; computing errors is not timed.

        Args:
            peer: Name of the peer's distribution.
            method: Its solver, in words.
            solve: Its solver, from a number of steps to an estimate.
            limit: Largest number of its steps.
            runs: Number of paired runs.
            device: Where both compute.

        Returns:
            The row.
        """
        found = {steps: self.error(solve(steps)) for steps in _ladder(limit)}
        level = SLACK * min(found.values())
        theirs = _fewest(lambda steps: self.error(solve(steps)), level, found)
        trace = {}
        for steps in _ladder(self.limit):
            trace[steps] = self.error(self.ours(steps))
            if trace[steps] <= level:
                break
        ours = _fewest(lambda steps: self.error(self.ours(steps)), level, trace)
        row: dict[str, Any] = {
            "kind": "peer",
            "group": self.group,
            "setting": self.setting,
            "peer": peer,
            "method": method,
            "ours": self.name,
            "error": float(f"{level:.3g}"),
            "steps": {"ours": ours, "peer": theirs},
        }
        if ours is None or theirs is None:
            best = min(trace.values())
            return row | {"ratio": None, "reached": {"ours": False, "peer": True}, "note": f"ours ends at {best:.3g}"}
        times = paired_seconds({"peer": lambda: solve(theirs), "ours": lambda: self.ours(ours)}, runs, device)
        found_ratio = ratio_row(times, "peer", "ours")
        return row | {
            "peer_seconds": found_ratio["above"],
            "ours_seconds": found_ratio["below"],
            "ratio": found_ratio["ratio"],
            "reached": {"ours": True, "peer": True},
        }


def fastest(rows: list[dict[str, Any]], at_least: float | None) -> dict[str, Any] | None:
    """The peer that comes nearest to ours, against a target.

    Args:
        rows: Rows of one problem.
        at_least: How many times faster ours should be.

    Returns:
        The target's row; ``None`` where there is no target or no peer.
    """
    if at_least is None or not rows:
        return None
    lost = [row for row in rows if not row["reached"]["ours"]]
    timed = [row for row in rows if row["ratio"] is not None]
    near = (lost or rows)[0] if lost or not timed else min(timed, key=lambda row: row["ratio"]["median"])
    measured = None if near["ratio"] is None else near["ratio"]["median"]
    return {
        "group": near["group"],
        "setting": f"{near['setting']}, beside {near['peer']} ({near['method']})",
        "at_least": at_least,
        "measured": measured,
        "met": measured is not None and measured >= at_least,
    }


def _ladder(limit: int) -> list[int]:
    """Numbers of steps to try: powers of two, and the limit."""
    return [*(2**i for i in range(limit.bit_length()) if 2**i < limit), limit]


def _fewest(error: Callable[[int], float], level: float, found: dict[int, float]) -> int | None:
    """The fewest steps whose error is at most ``level``, taking errors to fall; ``None`` where none of ``found`` is."""
    enough = [steps for steps, value in found.items() if value <= level]
    if not enough:
        return None
    high = min(enough)
    low = max((steps for steps in found if steps < high), default=0)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= level else (middle, high)
    return high
