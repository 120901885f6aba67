"""Theorem 3.1 as a calculator: what its sufficient condition promises for given sizes, and what it asks for."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from unconv.measure.theorems import theorem_31_delta
from unconv.paper.thm31 import Setting

WANTED = (0.1, 0.5, 0.99)


def run(setting: Setting, constant: float = 1.0, failure: float = 0.01) -> dict[str, Any]:
    """Evaluate ``M l^2 / D >= C k / delta^2 (log K + log n - log eps)`` for one layer.

    Args:
        setting: The sizes.
        constant: The theorem's unnamed ``C``.
        failure: The probability ``eps`` with which the promise may fail.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    delta = theorem_31_delta(setting.k, setting.M, setting.l, setting.D, setting.K, constant=constant, failure=failure)
    # delta^2 is proportional to k / M
    needed = {f"{wanted:g}": math.ceil(setting.M * (delta / wanted) ** 2) for wanted in WANTED}
    allowed = {f"{wanted:g}": math.floor(setting.k * (wanted / delta) ** 2) for wanted in WANTED}
    return {
        "name": "thm31",
        "paper": {"condition": "M l^2 / D >= C k / delta_k^2 (log K + log n - log eps), C not named"},
        "ours": {
            "sizes": asdict(setting),
            "constant": constant,
            "failure": failure,
            "delta": delta,
            "says_something": delta < 1,
            "channels_needed": needed,
            "largest_k": allowed,
        },
        "notes": [
            f"With C = {constant:g} the promise is {'a constant below 1' if delta < 1 else 'vacuous: 1 or more'}. The "
            "paper does not name C; `python -m unconv.paper.thm31` brackets it by certified and attained "
            "constants.",
            "One dimension, one region per channel, Gaussian filters of variance 1 / (M l).",
        ],
    }


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The promise, and what each smaller one would take.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    ours = result["ours"]
    sizes = ours["sizes"]
    rows: list[tuple[Any, ...]] = [(ours["delta"], sizes["M"], sizes["k"], "the given sizes")]
    for wanted, channels in ours["channels_needed"].items():
        rows.append((float(wanted), channels, sizes["k"], "channels needed at this k"))
        rows.append((float(wanted), sizes["M"], ours["largest_k"][wanted], "largest k at these channels"))
    return ("delta_k", "M", "k", "what"), rows
