"""Proposition 1: perfect reconstruction from an orthonormal W and -W, and how nearly filters come in pairs."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.linalg import relative_norm, tiny
from unconv.operators import ConvOperator, gaussian_like
from unconv.paper.context import Context, Result, Table, draw_share, histogram, label, numbering

CHANNELS, LENGTH, SHIFTS = 16, 5, 12  # of the orthonormal convolution: whole patches, moved by their own length
SIGNALS = 200  # Gaussian signals to reconstruct
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def run(context: Context) -> Result:
    """Check the proposition, and measure how nearly each block's filters come in pairs; no image is read."""
    operator = orthonormal_operator(context.seed)
    generator = torch.Generator().manual_seed(context.seed + 1)
    x = torch.randn(SIGNALS, *operator.input_shape, generator=generator, dtype=torch.float64)
    errors = {
        name: relative_norm(rectified_reconstruction(operator, x, pairs=pairs) - x, x).max().item()
        for name, pairs in (("with_pairs", True), ("without_pairs", False))
    }
    numbers = numbering(context.blocks)
    pairing, grouped = {}, []
    for name in context.names:
        operator = context.blocks.get(name).operator
        if operator.groups > 1 or len(operator.weight) < 2:
            grouped.append(name)
            continue
        banks = {"learned": operator.weight, "random": gaussian_like(operator.weight, context.seed)}
        pairing[label(numbers[name])] = {"block": name} | {
            bank: _summary(most_negative_cosines(weight)) for bank, weight in banks.items()
        }
    notes = [
        f"Reconstruction: largest relative error over {SIGNALS} Gaussian signals, an orthonormal convolution of "
        f"{CHANNELS * LENGTH} filters of {CHANNELS}x{LENGTH} at stride {LENGTH}, float64. Without pairs, ReLU drops "
        "half of the coefficients.",
        f"Pairing: per filter the most negative cosine with another filter of its layer ({context.model}), beside "
        "Gaussian filters of the same size; -1 is a perfect pair. Whole filters, batch norm folded in.",
    ]
    if grouped:
        notes.append(f"Left out, since few filters see the same channels: {', '.join(grouped)}.")
    return {
        "name": "prop1",
        "paper": {"with_pairs": 0.0, "pairing": "trained filters tend to come in +/- pairs (Shang et al. 2016)"},
        "ours": {"reconstruction": errors, "pairing": pairing},
        "notes": notes,
    }


def orthonormal_operator(seed: int) -> ConvOperator:
    """Return a convolution whose ``W`` is orthonormal: an orthonormal basis of one patch, moved by whole patches."""
    generator = torch.Generator().manual_seed(seed)
    size = CHANNELS * LENGTH
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return ConvOperator(basis.reshape(size, CHANNELS, LENGTH), (CHANNELS, LENGTH * SHIFTS), stride=LENGTH)


def rectified_reconstruction(operator: ConvOperator, x: Tensor, *, pairs: bool) -> Tensor:
    """Return ``Psi ReLU(Psi^T x)`` with ``Psi = [W^T, -W^T]`` if ``pairs``, otherwise with ``W^T`` alone."""
    h = operator.forward(x)
    positive = operator.adjoint(h.relu())
    return positive - operator.adjoint((-h).relu()) if pairs else positive


def most_negative_cosines(weight: Tensor) -> Tensor:
    """Return the cosine of each filter with its nearest to opposite one: -1 for a perfect pair. Shape ``(K,)``."""
    flat = weight.flatten(1).double()
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(tiny(flat))
    cosines = unit @ unit.T
    return cosines.fill_diagonal_(math.inf).amin(1).clamp_min(-1)


def _summary(cosines: Tensor) -> Result:
    values = cosines.numpy(force=True)
    quantiles = {key: float(np.quantile(values, q)) for key, q in QUANTILES.items()}
    return {"mean": float(values.mean())} | quantiles | {"histogram": histogram(values, 40, range=(-1, 1))}


def tables(result: Result) -> dict[str, Table]:
    """Return the reconstruction errors, then the pairing of every layer."""
    errors = result["ours"]["reconstruction"]
    rows = [
        ("largest error, with pairs", None, errors["with_pairs"], None, None, None, None, 0.0),
        ("largest error, without pairs", None, errors["without_pairs"], *[None] * 5),
    ]
    for layer, row in result["ours"]["pairing"].items():
        learned, random = row["learned"], row["random"]
        cells = (learned["mean"], learned["p05"], learned["p95"], random["mean"], random["p05"], None)
        rows.append((f"pairing, {layer}", row["block"], *cells))
    header = ("quantity", "conv block", "ours (mean)", "p05", "p95", "Gaussian (mean)", "Gaussian p05", "paper")
    return {"prop1": (header, rows)}


def draw(result: Result) -> Figure:
    """Draw the histogram of the pairing cosine of every layer, learned beside Gaussian."""
    pairing = result["ours"]["pairing"]
    rows = max(1, math.ceil(len(pairing) / 4))
    figure = Figure(figsize=(11, 2 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, sharex=True, squeeze=False).flatten()
    for panel, (layer, row) in zip(panels, pairing.items()):
        for bank in ("learned", "random"):
            draw_share(panel, row[bank]["histogram"], bank)
        panel.set_title(f"{layer} ({row['block']})", fontsize=8)
        panel.set(xlim=(-1, 0.25), xticks=(-1, -0.5, 0))
    for panel in panels[len(pairing) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    return figure
