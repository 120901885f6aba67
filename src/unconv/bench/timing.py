"""Paired timings: every call once per run, in turn, so that what slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Calls = Mapping[str, Callable[[], object]]
SHORTEST = 0.02  # seconds; a shorter call is repeated until it takes as long


def paired_seconds(calls: Calls, runs: int, device: torch.device) -> dict[str, list[float]]:
    """Time calls against each other.

    Args:
        calls: What to time, by name. Each is called once or twice before the clock starts.
        runs: Number of runs; the order of the calls is turned around in every other one.
        device: Where they compute; it has finished whenever the clock is read.

    Returns:
        Seconds per call of every run.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(SHORTEST / max(_clock(call, 1, device), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs):
        for name in list(calls)[:: 1 if run % 2 == 0 else -1]:
            times[name].append(_clock(calls[name], repeats[name], device))
    return times


def _clock(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, quartiles and range.

    Args:
        values: At least one number.
        digits: Significant digits kept.

    Returns:
        ``median``, ``q1``, ``q3``, ``min`` and ``max``.
    """
    found = np.quantile(np.asarray(values, dtype=np.float64), [0.5, 0.25, 0.75, 0.0, 1.0])
    names = ("median", "q1", "q3", "min", "max")
    return {name: float(f"{value:.{digits}g}") for name, value in zip(names, found, strict=True)}


def ratio_row(
    times: Mapping[str, Sequence[float]], above: str, below: str, *, scale: float = 1.0
) -> dict[str, dict[str, float]]:
    """Both sides of a paired timing, and the ratio of each run.

    Args:
        times: From ``paired_seconds``.
        above: Name of the side in the numerator.
        below: Name of the other.
        scale: Factor of the ratio, where both sides do different numbers of units.

    Returns:
        ``above``, ``below`` (seconds) and ``ratio``, each as ``spread`` gives it.
    """
    ratios = [scale * a / b for a, b in zip(times[above], times[below], strict=True)]
    return {"above": spread(times[above]), "below": spread(times[below]), "ratio": spread(ratios)}


def per_step(few: Sequence[float], many: Sequence[float], steps: int) -> list[float]:
    """Seconds of one step, from paired runs of fewer and of more steps, so that preparations cancel.

    Args:
        few: Seconds of the shorter runs.
        many: Seconds of the longer runs.
        steps: How many steps more those make.

    Returns:
        One number per run, at least a nanosecond.
    """
    return [max(b - a, 1e-9) / steps for a, b in zip(few, many, strict=True)]
