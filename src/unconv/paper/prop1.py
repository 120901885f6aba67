"""Proposition 1: perfect reconstruction from an orthonormal W and -W, and how nearly filters come in pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.linalg import relative_norm
from unconv.operators import ConvOperator, gaussian_like
from unconv.paper.experiment_context import Subject, blocks, label

CHANNELS, LENGTH, SHIFTS, SIGNALS = 16, 5, 12, 200
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def orthonormal_operator(seed: int) -> ConvOperator:
    """A convolution whose ``W`` is orthonormal: an orthonormal basis of one patch, moved by whole patches.

    Args:
        seed: Seed of the basis.

    Returns:
        The operator, in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    size = CHANNELS * LENGTH
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return ConvOperator(basis.reshape(size, CHANNELS, LENGTH), (CHANNELS, LENGTH * SHIFTS), stride=LENGTH)


def rectified_reconstruction(operator: ConvOperator, x: Tensor, *, pairs: bool) -> Tensor:
    """``Psi ReLU(Psi^T x)`` with ``Psi = [W^T, -W^T]``, or with ``W^T`` alone.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, M, *spatial)``.
        pairs: Whether every filter has its negative beside it.

    Returns:
        The shape of ``x``.
    """
    h = operator.forward(x)
    if pairs:
        return operator.adjoint(h.relu()) - operator.adjoint((-h).relu())
    return operator.adjoint(h.relu())


def most_negative_cosines(weight: Tensor) -> Tensor:
    """Cosine of each filter with its nearest to opposite one (Shang et al. 2016, CReLU): -1 for a perfect pair.

    Args:
        weight: Filters. Shape ``(K, M, *kernel)``, at least two; a zero filter counts as orthogonal to all.

    Returns:
        Shape ``(K,)``.
    """
    flat = weight.flatten(1).double()
    unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    cosines = unit @ unit.T
    return cosines.fill_diagonal_(math.inf).amin(1).clamp_min(-1)


def run(subject: Subject) -> dict[str, Any]:
    """Check the proposition, and measure how nearly each stage's filters come in pairs.

    Args:
        subject: The network; its images are not read.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    operator = orthonormal_operator(subject.seed)
    generator = torch.Generator().manual_seed(subject.seed + 1)
    x = torch.randn(SIGNALS, *operator.input_shape, generator=generator, dtype=torch.float64)
    errors = {
        name: relative_norm(rectified_reconstruction(operator, x, pairs=pairs) - x, x).max().item()
        for name, pairs in (("with_pairs", True), ("without_pairs", False))
    }
    numbering = blocks(subject.stages)
    pairing = {}
    grouped = []
    for name in subject.names:
        stage = subject.stages.get(name)
        weight = stage.operator.weight
        if stage.operator.groups > 1 or len(weight) < 2:
            grouped.append(name)
            continue
        learned = most_negative_cosines(weight)
        random = most_negative_cosines(gaussian_like(weight, subject.seed))
        pairing[label(numbering[name])] = {
            "stage": name,
            "learned": _summary(learned),
            "random": _summary(random),
        }
    notes = [
        f"Reconstruction: largest relative error over {SIGNALS} Gaussian signals, an orthonormal convolution of "
        f"{CHANNELS * LENGTH} filters of {CHANNELS}x{LENGTH} at stride {LENGTH}, float64. Without pairs, ReLU drops "
        "half of the coefficients.",
        f"Pairing: per filter the most negative cosine with another filter of its layer ({subject.model}), beside "
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


def _summary(cosines: Tensor) -> dict[str, Any]:
    values = cosines.numpy(force=True)
    counts, edges = np.histogram(values, bins=40, range=(-1, 1))
    quantiles = {key: float(np.quantile(values, q)) for key, q in QUANTILES.items()}
    return (
        {"mean": float(values.mean())} | quantiles | {"histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}
    )


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The reconstruction errors, then the pairing of every layer.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    errors = result["ours"]["reconstruction"]
    rows: list[tuple[Any, ...]] = [
        ("largest error, with pairs", None, errors["with_pairs"], None, None, None, None, 0.0),
        ("largest error, without pairs", None, errors["without_pairs"], *[None] * 5),
    ]
    for layer, row in result["ours"]["pairing"].items():
        learned, random = row["learned"], row["random"]
        cells = (learned["mean"], learned["p05"], learned["p95"], random["mean"], random["p05"], None)
        rows.append((f"pairing, {layer}", row["stage"], *cells))
    return ("quantity", "stage", "ours (mean)", "p05", "p95", "Gaussian (mean)", "Gaussian p05", "paper"), rows


def draw(result: dict[str, Any]) -> Figure:
    """Histogram of the pairing cosine of every layer, learned beside Gaussian.

    Args:
        result: What ``run`` returned.

    Returns:
        The figure.
    """
    pairing = result["ours"]["pairing"]
    columns = 4
    rows = max(1, math.ceil(len(pairing) / columns))
    figure = Figure(figsize=(11, 2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for panel, (layer, row) in zip(panels, pairing.items()):
        for bank in ("learned", "random"):
            histogram = row[bank]["histogram"]
            share = np.array(histogram["counts"]) / max(1, sum(histogram["counts"]))
            panel.stairs(share, histogram["edges"], fill=True, alpha=0.55, label=bank)
        panel.set_title(f"{layer} ({row['stage']})", fontsize=8)
        panel.set(xlim=(-1, 0.25), xticks=(-1, -0.5, 0))
    for panel in panels[len(pairing) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    return figure
