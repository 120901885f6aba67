"""Figure 2: the model-RIP of small Gaussian layers in one dimension, and one-step IHT's error on them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.linalg import norms, relative_norm
from unconv.measure.rip import draw_codes
from unconv.operators import ConvOperator
from unconv.paper.paper_values import FIGURE_2, FIGURE_2_CHECKED
from unconv.paper.thm31 import Setting
from unconv.sparsity import Pooled

SETTING = Setting(k=10)
CODES_PER_BANK = 500
QUANTILES = {"min": 0.0, "p01": 0.01, "p50": 0.5, "p99": 0.99, "max": 1.0}
QUANTITIES = {
    "ratio": "|W'z| / |z|",
    "gram_on_support": "|(WW'z)_S| / |z|, S the support of z (Lemma B.1)",
    "gram_everywhere": "|WW'z| / |z|, all entries",
    "error_true_switches": "|x^-x| / |x|, the true switches of z",
    "error_known_switches": "|x^-x| / |x|, M_known: switches of the pooling of Wx",
    "error_fixed_switches": "|x^-x| / |x|, M_fixed: first place of each map",
    "error_fixed_places": "|x^-x| / |x|, M_fixed, and z has its non-zeros there too",
}
PANELS = {
    "(a) |W'z| / |z|": ("ratio",),
    "(b) |WW'z| / |z|": ("gram_on_support", "gram_everywhere"),
    "(c) |x^-x| / |x|": (
        "error_true_switches",
        "error_known_switches",
        "error_fixed_switches",
        "error_fixed_places",
    ),
}


def run(draws: int = 20_000, seed: int = 0, setting: Setting = SETTING) -> dict[str, Any]:
    """Draw layers and codes, and measure.

    Args:
        draws: Number of codes; every 500 have filters of their own.
        seed: Seed of filters and codes.
        setting: The sizes.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    parts: list[dict[str, Tensor]] = []
    for bank, start in enumerate(range(0, draws, CODES_PER_BANK)):
        operator = setting.operator(seed * 1_000_003 + bank)
        parts.append(measure(operator, setting.k, min(CODES_PER_BANK, draws - start), seed * 1_000_003 + bank))
    values = {name: torch.cat([part[name] for part in parts]).numpy() for name in QUANTITIES}
    ours = {}
    for name, found in values.items():
        counts, edges = np.histogram(found, bins=80)
        quantiles = {key: float(np.quantile(found, q)) for key, q in QUANTILES.items()}
        ours[name] = quantiles | {"histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}
    sizes = ", ".join(f"{name}={value}" for name, value in asdict(setting).items())
    return {
        "name": "fig2",
        "paper": {"printed": FIGURE_2, "checked": FIGURE_2_CHECKED},
        "ours": ours,
        "notes": [
            f"{draws} codes, {CODES_PER_BANK} for each bank of Gaussian filters of variance 1 / (M l), {sizes}; values "
            "uniform on [-1, 1], at most one non-zero per channel; float64; x^ is not rescaled.",
            "checked: quantiles that were recomputed independently of this code, since the paper gives histograms; "
            "none for the last row.",
            "(b) is near 1 only on the support of z (Lemma B.1); over all entries it is near 2.",
            "(c) looks as printed only with the true switches of z; the switches of Wx, which a network has, give "
            "twice the error, and M_fixed on freely placed z more than x^ = 0 would.",
        ],
    }


def measure(operator: ConvOperator, k: int, draws: int, seed: int) -> dict[str, Tensor]:
    """All quantities of the figure for one filter bank.

    Args:
        operator: The layer ``W``, one dimension.
        k: Number of non-zeros.
        draws: Number of codes.
        seed: Seed of the codes.

    Returns:
        Shape ``(draws,)`` per name in ``QUANTITIES``.
    """
    codes = next(draw_codes(operator, Pooled("map"), k, draws, seed=seed))
    z = codes.dense()
    x = operator.adjoint(z)
    h = operator.forward(x)
    on_support = h * (z != 0)
    known = Pooled("map", k).project(h)
    cornered = torch.zeros_like(z)
    cornered[:, :, 0] = z.sum(2)  # at most one entry per channel
    x_cornered = operator.adjoint(cornered)
    from_corner = Pooled("map", k).project(operator.forward(x_cornered)).with_switches("fixed")

    def error(estimate: Tensor, truth: Tensor) -> Tensor:
        return relative_norm(operator.adjoint(estimate) - truth, truth)

    return {
        "ratio": norms(x) / norms(z),
        "gram_on_support": norms(on_support) / norms(z),
        "gram_everywhere": norms(h) / norms(z),
        "error_true_switches": error(on_support, x),
        "error_known_switches": error(known.dense(), x),
        "error_fixed_switches": error(known.with_switches("fixed").dense(), x),
        "error_fixed_places": error(from_corner.dense(), x_cornered),
    }


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Our quantiles beside the checked ones.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    checked = result["paper"]["checked"]
    rows = []
    for name, words in QUANTITIES.items():
        known = checked.get(name, {})
        said = ", ".join(f"{key} {value:g}" for key, value in known.items()) or None
        rows.append((words, *(result["ours"][name][key] for key in QUANTILES), said))
    return ("quantity", *QUANTILES, "checked"), rows


def draw(result: dict[str, Any]) -> Figure:
    """The three histograms, every variant in its panel.

    Args:
        result: What ``run`` returned.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for panel, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            histogram = result["ours"][name]["histogram"]
            words = QUANTITIES[name].partition(", ")[2] or "measured"
            panel.stairs(histogram["counts"], histogram["edges"], fill=True, alpha=0.55, label=words)
        panel.set_title(title, fontsize=10)
        panel.set_yticks([])
        if len(names) > 1:
            panel.margins(y=0.3)
            panel.legend(fontsize=6, loc="upper right")
    return figure
