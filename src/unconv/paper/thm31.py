"""Theorem 3.1 as a calculator: what its sufficient condition promises for given sizes, and what it asks for.

``experiments/thm31_scaling.py`` measures how the constants really scale.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from unconv.measure.theorems import theorem_31_delta
from unconv.operators import ConvOperator, gaussian_like
from unconv.paper.context import Result, Table

CONSTANT = 1.0  # the theorem's C, which the paper does not name
FAILURE = 0.01  # the probability eps with which the promise may fail
WANTED = (0.1, 0.5, 0.99)
VARIABLES = ("k", "M", "l", "D", "K")
THEOREM = {"k": 0.5, "M": -0.5, "l": -1.0, "D": 0.5, "K": 0.0}  # exponents of delta_k, up to logarithms


@dataclass(frozen=True)
class Sizes:
    """The sizes of one Gaussian layer, named as in the paper."""

    k: int = 8  # non-zeros
    M: int = 32  # channels of the input
    l: int = 5  # length of a filter
    D: int = 32  # length of the input
    K: int = 96  # number of filters

    def operator(self, seed: int) -> ConvOperator:
        """Return the layer, in float64, with filters of variance ``1 / (M l)``."""
        weight = gaussian_like(torch.zeros(self.K, self.M, self.l, dtype=torch.float64), seed)
        return ConvOperator(weight, (self.M, self.D))

    def promise(self) -> float:
        """Return the ``delta_k`` that the theorem promises with ``CONSTANT`` and ``FAILURE``."""
        return theorem_31_delta(self.k, self.M, self.l, self.D, self.K, constant=CONSTANT, failure=FAILURE)


def run(sizes: Sizes) -> Result:
    """Evaluate ``M l^2 / D >= C k / delta^2 (log K + log n - log eps)`` for one layer."""
    delta = sizes.promise()
    # delta^2 is proportional to k / M
    needed = {f"{wanted:g}": math.ceil(sizes.M * (delta / wanted) ** 2) for wanted in WANTED}
    allowed = {f"{wanted:g}": math.floor(sizes.k * (wanted / delta) ** 2) for wanted in WANTED}
    return {
        "name": "thm31",
        "paper": {"condition": "M l^2 / D >= C k / delta_k^2 (log K + log n - log eps), C not named"},
        "ours": {
            "sizes": asdict(sizes),
            "constant": CONSTANT,
            "failure": FAILURE,
            "delta": delta,
            "says_something": delta < 1,
            "channels_needed": needed,
            "largest_k": allowed,
        },
        "notes": [
            f"With C = {CONSTANT:g} the promise is {'a constant below 1' if delta < 1 else 'vacuous: 1 or more'}. The "
            "paper does not name C; experiments/thm31_scaling.py brackets it by certified and attained constants.",
            "One dimension, one region per channel, Gaussian filters of variance 1 / (M l).",
        ],
    }


def tables(result: Result) -> dict[str, Table]:
    """Return the promise, and what each smaller one would take."""
    ours, sizes = result["ours"], result["ours"]["sizes"]
    rows: list[tuple[Any, ...]] = [(ours["delta"], sizes["M"], sizes["k"], "the given sizes")]
    for wanted, channels in ours["channels_needed"].items():
        rows.append((float(wanted), channels, sizes["k"], "channels needed at this k"))
        rows.append((float(wanted), sizes["M"], ours["largest_k"][wanted], "largest k at these channels"))
    return {"thm31": (("delta_k", "M", "k", "what"), rows)}
