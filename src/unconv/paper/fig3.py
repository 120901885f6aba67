"""Figure 3: model-RIP of a late layer for random codes, and for codes that Algorithm 2 finds for real activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.evaluate.network import CapturedStream
from unconv.evaluate.sparsity_stats import activity_over, paper_k
from unconv.linalg import norms, relative_norm
from unconv.measure.rip import Boundary, RatioSummary, sample_ratios
from unconv.operators import ConvOperator
from unconv.paper.experiment_context import Subject, blocks, label
from unconv.paper.paper_values import FIGURE_3, FIGURE_3_CHECKED
from unconv.recover.activation import activation_recovery
from unconv.recover.fista import FRACTION, default_weight
from unconv.sparsity import Pooled, Window

PAPER_STAGE = (5, 2)
TOLERANCE = 1e-3
MANY = 400  # ratios that fill a fine histogram
ROWS = {
    "random codes": "random codes, normalised filters, full output",
    "random codes, cropped": "random codes, normalised filters, output cropped to the input",
    "gaussian, full": "random codes, Gaussian filters, full output",
    "gaussian, cropped": "random codes, Gaussian filters, output cropped to the input",
    "codes before ReLU": "Algorithm 2 on the activation before ReLU, full output",
    "codes before ReLU, centred": "Algorithm 2 on the activation before ReLU without its channels' means, full output",
    "codes after ReLU": "Algorithm 2 on the activation after ReLU, full output",
}


def choose_stage(subject: Subject) -> str:
    """The stage of the paper where there is one, else the last that reads a stage without pooling, else the last.

    Args:
        subject: The network.

    Returns:
        Its name.
    """
    numbering = blocks(subject.stages)
    for name in subject.names:
        if numbering[name] == PAPER_STAGE:
            return name
    unpooled = {stage.name for stage in subject.stages if stage.pooling is None}
    reading = [name for name in subject.names if subject.stages.get(name).source in unpooled]
    return (reading or list(subject.names))[-1]


@dataclass(frozen=True)
class Found:
    """What Algorithm 2 found for one kind of activation of some images, at one lambda.

    Attributes:
        row: The kind, one of ``ROWS``.
        fraction: Half of lambda, as a fraction of ``max |W x|``.
        ratios: ``||W^T z|| / ||z||``. Shape ``(N,)``.
        errors: ``||W^T z - x|| / ||x||``. Shape ``(N,)``.
        constant: Share of ``||x||^2`` that the means of its channels make up. Shape ``(N,)``.
        converged: Whether all minimisations have.
    """

    row: str
    fraction: float
    ratios: Tensor
    errors: Tensor
    constant: Tensor
    converged: bool


def run(
    subject: Subject,
    samples: int = 1000,
    recovered: int = 4,
    steps: int = 300,
    fractions: Sequence[float] = (FRACTION,),
) -> dict[str, Any]:
    """Sample ratios ``||W^T z|| / ||z||``.

    Args:
        subject: The network and the images.
        samples: Number of random codes.
        recovered: Number of images whose codes Algorithm 2 finds; none where 0.
        steps: Largest number of steps of each of its two minimisations.
        fractions: Half of Algorithm 2's lambda, as fractions of ``max |W x|``; the first one is the figure's.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    name = choose_stage(subject)
    stream = CapturedStream(subject.network, subject.images, lambda _: [name])
    counted, _ = activity_over(stream, [name], subject.region, subject.progress)
    stage = subject.pooled(subject.stages.get(name))
    # counted under its own name where it pools itself, else behind the imposed pooling
    share = counted[list(counted)[-1]].pooled.fraction
    k = paper_k(stage, share)
    regions = Pooled(stage.pooling if isinstance(stage.pooling, Window) else 1)
    found = _random_codes(subject, stage, regions, k, samples)
    notes: list[str] = []
    sweep: list[dict[str, Any]] = []
    if recovered:
        codes = list(_recovered(subject, name, share, recovered, steps, fractions))
        for row, fraction in product(ROWS, fractions):
            part = [one for one in codes if (one.row, one.fraction) == (row, fraction)]
            if part:
                ratios = torch.cat([one.ratios for one in part])
                found.setdefault(row, ratios)  # of the first fraction
                means = {
                    "ratio": ratios.mean().item(),
                    "error": torch.cat([one.errors for one in part]).mean().item(),
                    "constant": torch.cat([one.constant for one in part]).mean().item(),
                }
                sweep.append({"codes": row, "fraction": fraction, "images": len(ratios), **means})
        short = sum(1 for one in codes if not one.converged)
        notes.append(
            f"Algorithm 2 on {recovered} image(s), lambda / 2 = {fractions[0]:g} of max |Wx|, until the duality gap is "
            f"{TOLERANCE:g} of |x|^2 / 2 or {steps} steps; {short} of {len(codes)} batches ended before. The paper has "
            "1000 codes, and does not give its lambda."
        )
        if all(one.row == "codes after ReLU" for one in codes):
            notes.append(f"{name} does not read the output of one stage, so there is no activation before ReLU.")
    ours = {row: _summary(found[row]) for row in ROWS if row in found}
    return {
        "name": "fig3",
        "paper": {"printed": FIGURE_3, "checked": FIGURE_3_CHECKED},
        "ours": {
            "stage": name,
            "layer": label(blocks(subject.stages)[name]),
            "k": k,
            "regions": paper_k(stage, 1.0),
            "share": share,
            "ratios": ours,
            "lambda": sweep,
        },
        "notes": [
            f"Ours: {name} of {subject.model}, {samples} random codes at the measured sparsity ({100 * share:.1f} % of "
            "the regions), values uniform on [-1, 1]; filters scaled to unit norm.",
            "'full' keeps the whole of W'z, as in the paper; cropped to the input, filters at the border lose part of "
            "their norm.",
            *notes,
        ],
    }


def _random_codes(subject: Subject, stage: ConvBlock, regions: Pooled, k: int, samples: int) -> dict[str, Tensor]:
    unit, gaussian = stage.operator.normalised(), stage.operator.gaussian(subject.seed)
    banks: dict[str, tuple[ConvOperator, Boundary]] = {
        "random codes": (unit, "full"),
        "random codes, cropped": (unit, "cropped"),
        "gaussian, full": (gaussian, "full"),
        "gaussian, cropped": (gaussian, "cropped"),
    }
    if not any(stage.operator.padding):
        banks = {row: bank for row, bank in banks.items() if bank[1] == "full"}
    found = {}
    for row, (operator, boundary) in banks.items():
        found[row] = sample_ratios(operator, regions, k, samples, seed=subject.seed, boundary=boundary)
        subject.progress(f"model-RIP, {row}", len(subject.images))
    return found


def _recovered(
    subject: Subject, name: str, share: float, images: int, steps: int, fractions: Sequence[float]
) -> Iterator[Found]:
    source = subject.stages.get(name).source
    names = [source, name] if source in subject.stages.names else [name]
    left = images
    for captured in CapturedStream(subject.network, subject.images, lambda _: names):
        stage = subject.pooled(captured.stages.get(name))
        operator = stage.operator.normalised().full()
        model = Pooled(stage.pooling if isinstance(stage.pooling, Window) else 1, paper_k(stage, share))
        activations = {"codes after ReLU": captured.inputs[name][:left]}
        if len(names) > 1:
            before = captured.stages.get(names[0])
            linear = before.pool(before.preactivation(captured.inputs[names[0]][:left])).values
            activations["codes before ReLU"] = linear
            activations["codes before ReLU, centred"] = linear - _channel_means(linear)
        for (row, x), fraction in product(activations.items(), fractions):
            padded = F.pad(x, [p for padding in reversed(stage.operator.padding) for p in (padding, padding)])
            weight = default_weight(operator, padded, fraction).clamp_min(1e-30)
            solution = activation_recovery(operator, padded, model, weight=weight, tolerance=TOLERANCE, max_steps=steps)
            z, again = solution.value.code.dense(), solution.value.reconstruction
            there = norms(z) > 0
            ratios = norms(again)[there] / norms(z)[there]
            errors = relative_norm(again - padded, padded)[there]
            constant = relative_norm(_channel_means(x).expand_as(x), x).square()[there]
            converged = all(status == "converged" for status in solution.status)
            yield Found(row, fraction, ratios, errors, constant, converged)
        subject.progress(f"Algorithm 2 on {name}", 0)
        left -= len(captured.batch.names)
        if left <= 0:
            return


def _channel_means(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _summary(ratios: Tensor) -> dict[str, Any]:
    values = ratios.double().numpy(force=True)
    counts, edges = np.histogram(values, bins=40 if len(values) >= MANY else 12)
    return vars(RatioSummary.of(ratios)) | {"histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return 5 * len(subject.images)


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Ours beside the paper's.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    printed, checked = result["paper"]["printed"], result["paper"]["checked"]
    rows = []
    for row, found in result["ours"]["ratios"].items():
        theirs = printed.get(row) or checked.get(row) or {}
        said = ", ".join(f"{key} {value}" for key, value in theirs.items()) or None
        rows.append((ROWS[row], found["samples"], *(found[q] for q in ("p01", "p50", "p99", "mean", "std")), said))
    return ("|W'z| / |z|", "codes", "p01", "p50", "p99", "mean", "std", "paper, VGG-16"), rows


def tables(result: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """The ratios; and, where Algorithm 2 ran, what they are at each lambda.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows by caption.
    """
    found = {"ratios": table(result)}
    if sweep := result["ours"].get("lambda"):
        header = (
            "x",
            "share of channel means in |x|^2",
            "lambda / (2 max |Wx|)",
            "images",
            "|W'z| / |z|",
            "|W'z - x| / |x|",
        )
        keys = ("constant", "fraction", "images", "ratio", "error")
        rows = [(one["codes"].removeprefix("codes "), *(one[key] for key in keys)) for one in sweep]
        found["lambda"] = (header, rows)
    return found


def draw(result: dict[str, Any]) -> Figure:
    """Histograms of the ratios, one panel per kind of code.

    Args:
        result: What ``run`` returned.

    Returns:
        The figure.
    """
    found = result["ours"]["ratios"]
    panels = {
        "random codes": [row for row in found if not row.startswith("codes")],
        "Algorithm 2": [row for row in found if row.startswith("codes")],
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    figure = Figure(figsize=(5 * len(panels), 3), layout="constrained")
    for panel, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for row in rows:
            histogram = found[row]["histogram"]
            share = np.array(histogram["counts"]) / max(1, sum(histogram["counts"]))
            panel.stairs(share, histogram["edges"], fill=True, alpha=0.55, label=row)
        panel.axvline(1, color="k", linewidth=0.8, linestyle=":")
        panel.set_title(f"{title}, {result['ours']['layer']} ({result['ours']['stage']})", fontsize=9)
        panel.set_xlabel("|W'z| / |z|")
        panel.legend(fontsize=7)
    return figure
