"""Theorem 3.3: one-step IHT's measured error beside the bound, called vacuous where it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from unconv.paper.thm31 import Setting, one_step

SETTINGS = (
    Setting(k=10),
    Setting(k=2),
    Setting(k=2, M=512),
    Setting(k=2, M=4096),
)


def run(
    settings: tuple[Setting, ...] = SETTINGS, draws: int = 1000, effort: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Bracket the constants, bound the error, and measure it.

    Args:
        settings: Sizes of Gaussian layers.
        draws: Number of random codes per layer.
        effort: Work of the search for a large attained constant.
        seed: Seed of filters, codes and search.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    ours = []
    for setting in settings:
        found = one_step(setting, seed, draws=draws, effort=effort)
        ours.append(asdict(setting) | found | {"verdict": verdict(found["bound_upper"])})
    return {
        "name": "thm33",
        "paper": {"bound": "|x^-x| / |x| <= 5 d_2k / (1 - d_k) sqrt((1 + d_2k) / (1 - d_2k)), d = delta"},
        "ours": ours,
        "notes": [
            f"Gaussian layers in one dimension; 'error' is the largest over {draws} random codes, x^ not rescaled; "
            "'lower' and 'upper' bracket each constant: attained by a witness, and proven.",
            "The bound from the proven constants holds for sure. It is vacuous where it is 1 or more, which x^ = 0 "
            "attains, and silent where no delta_2k below 1 is proven; it says more than that only from "
            "delta_2k < 0.146 on.",
        ],
    }


def verdict(bound: float | None) -> str:
    """What a bound on a relative error is worth.

    Args:
        bound: The bound; ``None`` where the theorem gives none.

    Returns:
        ``"silent"``, ``"vacuous"`` or ``"useful"``.
    """
    if bound is None:
        return "silent"
    return "vacuous" if bound >= 1 else "useful"


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """One row per layer.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    fields = (
        "k",
        "M",
        "lower_2k",
        "upper_2k",
        "bound_lower",
        "bound_upper",
        "error_true_switches",
        "error_found_switches",
        "verdict",
    )
    header = (
        "k",
        "M",
        "delta_2k attained",
        "delta_2k proven",
        "bound if attained",
        "bound proven",
        "error, true switches",
        "error, found switches",
        "the bound is",
    )
    return header, [tuple(row[field] for field in fields) for row in result["ours"]]
