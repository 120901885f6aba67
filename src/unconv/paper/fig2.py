"""Figure 2: the model-RIP of small Gaussian layers in one dimension, and one-step IHT's error on them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.linalg import norms, relative_norm
from unconv.measure.rip import draw_codes
from unconv.operators import ConvOperator
from unconv.paper.context import Result, Table, histogram
from unconv.paper.paper_values import FIGURE_2, FIGURE_2_CHECKED
from unconv.paper.thm31 import Sizes
from unconv.sparsity import Pooled

SIZES = Sizes(k=10)
CODES_PER_BANK = 500  # codes that share one bank of Gaussian filters
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
    "(c) |x^-x| / |x|": tuple(name for name in QUANTITIES if name.startswith("error")),
}


def run(draws: int = 20_000, seed: int = 0, sizes: Sizes = SIZES) -> Result:
    """Draw layers and codes, and measure."""
    parts: list[dict[str, Tensor]] = []
    for bank, start in enumerate(range(0, draws, CODES_PER_BANK)):
        bank_seed = seed * 1_000_003 + bank
        count = min(CODES_PER_BANK, draws - start)
        parts.append(measure(sizes.operator(bank_seed), sizes.k, count, bank_seed))
    ours = {}
    for name in QUANTITIES:
        values = torch.cat([part[name] for part in parts]).numpy()
        quantiles = {key: float(np.quantile(values, q)) for key, q in QUANTILES.items()}
        ours[name] = quantiles | {"histogram": histogram(values, 80)}
    words = ", ".join(f"{name}={value}" for name, value in asdict(sizes).items())
    notes = [
        f"{draws} codes, {CODES_PER_BANK} for each bank of Gaussian filters of variance 1 / (M l), {words}; values "
        "uniform on [-1, 1], at most one non-zero per channel; float64; x^ is not rescaled."
    ]
    if sizes == SIZES:
        notes += [
            "checked: quantiles that were recomputed independently of this code, since the paper gives histograms; "
            "none for the last row.",
            "(b) is near 1 only on the support of z (Lemma B.1); over all entries it is near 2.",
            "(c) looks as printed only with the true switches of z; the switches of Wx, which a network has, give "
            "twice the error, and M_fixed on freely placed z more than x^ = 0 would.",
        ]
    else:
        notes.append("The paper's sizes are others, so nothing of it stands beside ours.")
    paper = {"printed": FIGURE_2, "checked": FIGURE_2_CHECKED} if sizes == SIZES else None
    return {"name": "fig2", "paper": paper, "ours": ours, "notes": notes}


def measure(operator: ConvOperator, k: int, draws: int, seed: int) -> dict[str, Tensor]:
    """Return all quantities of the figure for one filter bank, each of shape ``(draws,)``."""
    z = next(draw_codes(operator, Pooled("map"), k, draws, seed=seed)).dense()
    x = operator.adjoint(z)  # x = W^T z
    h = operator.forward(x)  # h = W W^T z
    on_support = h * (z != 0)
    known = Pooled("map", k).project(h)  # M_known(W x, k)
    cornered = torch.zeros_like(z)
    cornered[:, :, 0] = z.sum(2)  # at most one entry per channel
    x_cornered = operator.adjoint(cornered)
    from_corner = Pooled("map", k).project(operator.forward(x_cornered)).with_fixed_switches()

    def error(estimate: Tensor, truth: Tensor) -> Tensor:
        return relative_norm(operator.adjoint(estimate) - truth, truth)

    return {
        "ratio": norms(x) / norms(z),
        "gram_on_support": norms(on_support) / norms(z),
        "gram_everywhere": norms(h) / norms(z),
        "error_true_switches": error(on_support, x),
        "error_known_switches": error(known.dense(), x),
        "error_fixed_switches": error(known.with_fixed_switches().dense(), x),
        "error_fixed_places": error(from_corner.dense(), x_cornered),
    }


def tables(result: Result) -> dict[str, Table]:
    """Return our quantiles beside the checked ones."""
    rows = []
    for name, words in QUANTITIES.items():
        checked = result["paper"]["checked"].get(name, {}) if result["paper"] else {}
        theirs = ", ".join(f"{key} {value:g}" for key, value in checked.items()) or None
        rows.append((words, *(result["ours"][name][key] for key in QUANTILES), theirs))
    header = ("quantity", *QUANTILES, "checked")
    return {"fig2": (header, rows) if result["paper"] else (header[:-1], [row[:-1] for row in rows])}


def draw(result: Result) -> Figure:
    """Draw the three histograms, every variant in its panel."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for panel, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            bars = result["ours"][name]["histogram"]
            words = QUANTITIES[name].partition(", ")[2] or "measured"
            panel.stairs(bars["counts"], bars["edges"], fill=True, alpha=0.55, label=words)
        panel.set_title(title, fontsize=10)
        panel.set_yticks([])
        if len(names) > 1:
            panel.margins(y=0.3)
            panel.legend(fontsize=6, loc="upper right")
    return figure
