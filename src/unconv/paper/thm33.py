"""Theorem 3.3: one-step IHT's measured error beside the bound, called vacuous where it is."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from unconv.certify.lower_bound import lower_bound
from unconv.certify.upper_bound import upper_bound
from unconv.io import finite
from unconv.linalg import relative_norm
from unconv.measure.rip import draw_codes
from unconv.measure.theorems import theorem_33_bound
from unconv.paper.context import Result, Table
from unconv.paper.thm31 import Sizes
from unconv.sparsity import Pooled

LAYERS = (Sizes(k=10), Sizes(k=2), Sizes(k=2, M=512), Sizes(k=2, M=4096))
EFFORT = 0.1  # work of the search for a large attained constant
COLUMNS = {
    "k": "k",
    "M": "M",
    "lower_2k": "delta_2k, lower bound (witness)",
    "upper_2k": "delta_2k, upper bound",
    "bound_lower": "bound from the lower",
    "bound_upper": "bound from the upper",
    "error_true_switches": "error, true switches",
    "error_found_switches": "error, found switches",
    "verdict": "the bound is",
}


def run(layers: tuple[Sizes, ...] = LAYERS, draws: int = 1000, effort: float = EFFORT, seed: int = 0) -> Result:
    """Bracket the constants, bound the error, and measure it."""
    ours = []
    for sizes in layers:
        row = one_step(sizes, seed, draws=draws, effort=effort)
        ours.append(asdict(sizes) | row | {"verdict": verdict(row["bound_upper"])})
    values = {name: dict.fromkeys(str(getattr(sizes, name)) for sizes in layers) for name in ("l", "D", "K")}
    shared = ", ".join(f"{name}={' or '.join(found)}" for name, found in values.items())
    return {
        "name": "thm33",
        "paper": {"bound": "|x^-x| / |x| <= 5 d_2k / (1 - d_k) sqrt((1 + d_2k) / (1 - d_2k)), d = delta"},
        "ours": ours,
        "notes": [
            f"Gaussian layers in one dimension, {shared}; 'error' is the largest over {draws} random codes, x^ not "
            "rescaled; 'lower' and 'upper' bracket each constant: attained by a witness, and proven.",
            "The bound from the upper constants holds for sure. It is vacuous where it is 1 or more, which x^ = 0 "
            "attains, and silent where no delta_2k below 1 is proven. From delta_2k = 0.169 on it is vacuous whatever "
            "delta_k is; up to 0.147 it is useful.",
        ],
    }


def one_step(sizes: Sizes, seed: int, *, draws: int, effort: float) -> dict[str, float | None]:
    """Return both bounds of delta_k and delta_2k, the theorem's bounds from them, and the largest errors."""
    operator = sizes.operator(seed)
    result: dict[str, float | None] = {"k": sizes.k, "M": sizes.M}
    for end in ("lower", "upper"):
        k, twice = (
            lower_bound(operator, "map", sizes.k, twice=both, effort=effort, seed=seed).delta
            if end == "lower"
            else upper_bound(operator, "map", sizes.k, twice=both).value
            for both in (False, True)
        )
        # the bounds come from two searches: the smaller constant is at most the larger one
        bound = theorem_33_bound(min(k, twice), twice)
        result |= {f"{end}_k": k, f"{end}_2k": twice, f"bound_{end}": finite(bound)}
    errors: dict[str, list[Tensor]] = {"error_true_switches": [], "error_found_switches": []}
    for codes in draw_codes(operator, Pooled("map"), sizes.k, draws, seed=seed, batch=20):
        z = codes.dense()
        x = operator.adjoint(z)  # x = W^T z
        h = operator.forward(x)
        errors["error_true_switches"].append(relative_norm(operator.adjoint(h * (z != 0)) - x, x))
        estimate = operator.adjoint(Pooled("map", sizes.k).project(h).dense())  # W^T M_known(W x, k)
        errors["error_found_switches"].append(relative_norm(estimate - x, x))
    return result | {name: torch.cat(parts).max().item() for name, parts in errors.items()}


def verdict(bound: float | None) -> str:
    """Return what a bound on a relative error is worth: ``"silent"``, ``"vacuous"`` or ``"useful"``."""
    if bound is None:
        return "silent"
    return "vacuous" if bound >= 1 else "useful"


def tables(result: Result) -> dict[str, Table]:
    """Return one row per layer."""
    return {"thm33": (tuple(COLUMNS.values()), [tuple(row[name] for name in COLUMNS) for row in result["ours"]])}
