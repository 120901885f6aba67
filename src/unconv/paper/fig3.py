"""Figure 3: model-RIP of a late layer for random codes, and for codes that Algorithm 2 finds for real activations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.evaluate.block_reconstruction import paper_k
from unconv.evaluate.theory import pooled_fraction
from unconv.inversion.blocks import pad_widths
from unconv.linalg import norms, relative_norm
from unconv.measure.rip import RatioSummary, sample_ratios
from unconv.operators import Boundary
from unconv.paper.context import Context, Result, Table, draw_share, histogram, label, numbering, regions_of
from unconv.paper.paper_values import FIGURE_3, FIGURE_3_CHECKED
from unconv.recover.activation import activation_recovery
from unconv.recover.fista import FRACTION, default_weight

PAPER_LAYER = (5, 2)
TOLERANCE = 1e-3  # duality gap at which a minimisation ends, as a fraction of |x|^2 / 2
ROWS = {
    "random codes": "random codes, normalised filters, full output",
    "random codes, cropped": "random codes, normalised filters, output cropped to the input",
    "gaussian, full": "random codes, Gaussian filters, full output",
    "gaussian, cropped": "random codes, Gaussian filters, output cropped to the input",
    "codes before ReLU": "Algorithm 2 on the activation before ReLU, full output",
    "codes before ReLU, centred": "Algorithm 2 on the activation before ReLU without its channels' means, full output",
    "codes after ReLU": "Algorithm 2 on the activation after ReLU, full output",
}
Recovered = dict[tuple[str, float], dict[str, list[Tensor]]]


def run(
    context: Context,
    samples: int = 1000,
    recovered: int = 4,
    steps: int = 300,
    fractions: Sequence[float] = (FRACTION,),
) -> Result:
    """Sample ratios ``|W^T z| / |z|``; Algorithm 2 finds codes of some images, the paper's are 1000.

    The first of ``fractions`` (half of lambda, of max |W x|) is the figure's; ``steps``: of each of its minimisations.
    """
    name = choose_layer(context)
    share = pooled_fraction(context.count_nonzeros([name], context.region), name)
    block = context.pooled(context.blocks.get(name))
    k = paper_k(block, share)
    ratios = _random_codes(context, block, k, samples)
    notes, sweep = [], []
    if recovered:
        found, unfinished = _recovered(context, name, share, recovered, steps, fractions)
        for row, fraction in sorted(found, key=lambda key: (list(ROWS).index(key[0]), fractions.index(key[1]))):
            values = {key: torch.cat(parts) for key, parts in found[row, fraction].items()}
            ratios.setdefault(row, values["ratio"])  # of the first fraction
            means = {key: value.mean().item() for key, value in values.items()}
            sweep.append({"codes": row, "fraction": fraction, "images": len(values["ratio"]), **means})
        notes.append(
            f"Algorithm 2 on {recovered} image(s), lambda / 2 = {fractions[0]:g} of max |Wx|, until the duality gap is "
            f"{TOLERANCE:g} of |x|^2 / 2 or {steps} steps; {unfinished} recoveries ended before. The paper has 1000 "
            "codes, and does not give its lambda."
        )
        if all(row == "codes after ReLU" for row, _ in found):
            notes.append(f"{name} does not read the output of one block, so there is no activation before ReLU.")
    return {
        "name": "fig3",
        "paper": {"printed": FIGURE_3, "checked": FIGURE_3_CHECKED},
        "ours": {
            "block": name,
            "layer": label(numbering(context.blocks)[name]),
            "k": k,
            "regions": paper_k(block, 1.0),
            "share": share,
            "ratios": {row: _summary(ratios[row]) for row in ROWS if row in ratios},
            "lambda": sweep,
        },
        "notes": [
            f"Ours: {name} of {context.model}, {samples} random codes at the measured sparsity ({100 * share:.1f} % of "
            "the regions), values uniform on [-1, 1]; filters scaled to unit norm.",
            "'full' keeps the whole of W'z, as in the paper; cropped to the input, filters at the border lose part of "
            "their norm.",
            *notes,
        ],
    }


def choose_layer(context: Context) -> str:
    """Return the paper's block where there is one, else the last that reads one without pooling, else the last."""
    numbers = numbering(context.blocks)
    for name in context.names:
        if numbers[name] == PAPER_LAYER:
            return name
    unpooled = {block.name for block in context.blocks if block.pooling is None}
    reading = [name for name in context.names if context.blocks.get(name).source in unpooled]
    return (reading or list(context.names))[-1]


def _random_codes(context: Context, block: ConvBlock, k: int, samples: int) -> dict[str, Tensor]:
    banks = {"random codes": block.operator.normalised(), "gaussian": block.operator.gaussian(context.seed)}
    boundaries: tuple[Boundary, ...] = ("full", "cropped") if any(block.operator.padding) else ("full",)
    ratios = {}
    for (bank, operator), boundary in product(banks.items(), boundaries):
        row = bank if (bank, boundary) == ("random codes", "full") else f"{bank}, {boundary}"
        ratios[row] = sample_ratios(operator, regions_of(block), k, samples, seed=context.seed, boundary=boundary)
        context.progress(f"model-RIP, {row}")
    return ratios


def _recovered(
    context: Context, name: str, share: float, images: int, steps: int, fractions: Sequence[float]
) -> tuple[Recovered, int]:
    """Return what Algorithm 2 finds, one entry per image by row and fraction, and how many recoveries ran out of steps.

    Of each ``||W^T z|| / ||z||``, ``||W^T z - x|| / ||x||``, and the share of ``||x||^2`` in its channels' means.
    """
    source = context.blocks.get(name).source
    names = [source, name] if source is not None and source in context.blocks.names else [name]
    found: Recovered = {}
    unfinished = 0
    for captured in context.captured(names):
        block = context.pooled(captured.blocks.get(name))
        operator = block.operator.normalised().full()
        activations = {"codes after ReLU": captured.inputs[name][:images]}
        if source is not None and len(names) > 1:
            before = captured.blocks.get(source)
            linear = before.pool(before.preactivation(captured.inputs[source][:images])).values
            activations["codes before ReLU"] = linear
            activations["codes before ReLU, centred"] = linear - _channel_means(linear)
        for (row, x), fraction in product(activations.items(), fractions):
            padded = F.pad(x, pad_widths([(p, p) for p in block.operator.padding]))
            solution = activation_recovery(
                operator,
                padded,
                regions_of(block, paper_k(block, share)),
                weight=default_weight(operator, padded, fraction),
                tolerance=TOLERANCE,
                max_steps=steps,
            )
            unfinished += sum(status != "converged" for status in solution.status)
            z, reconstruction = solution.value.code.dense(), solution.value.reconstruction
            nonzero = norms(z) > 0
            parts = found.setdefault((row, fraction), {"ratio": [], "error": [], "constant": []})
            parts["ratio"].append(norms(reconstruction)[nonzero] / norms(z)[nonzero])
            parts["error"].append(relative_norm(reconstruction - padded, padded)[nonzero])
            parts["constant"].append(relative_norm(_channel_means(x).expand_as(x), x).square()[nonzero])
        context.progress(f"Algorithm 2 on {name}")
        images -= len(captured.batch.names)
        if images <= 0:
            break
    return found, unfinished


def _channel_means(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _summary(ratios: Tensor) -> dict[str, Any]:
    bars = histogram(ratios.double().numpy(force=True), 40 if len(ratios) >= 400 else 12)
    return vars(RatioSummary.of(ratios)) | {"histogram": bars}


def tables(result: Result) -> dict[str, Table]:
    """Return the ratios beside the paper's; and, where Algorithm 2 ran, what they are at each lambda."""
    printed, checked = result["paper"]["printed"], result["paper"]["checked"]
    rows = []
    for row, ratios in result["ours"]["ratios"].items():
        theirs = printed.get(row) or checked.get(row) or {}
        words = ", ".join(f"{key} {value}" for key, value in theirs.items()) or None
        rows.append((ROWS[row], ratios["samples"], *(ratios[q] for q in ("p01", "p50", "p99", "mean", "std")), words))
    header = ("|W'z| / |z|", "codes", "p01", "p50", "p99", "mean", "std", "paper, VGG-16")
    both: dict[str, Table] = {"ratios": (header, rows)}
    if sweep := result["ours"].get("lambda"):
        header = (
            *("x", "share of channel means in |x|^2", "lambda / (2 max |Wx|)", "images"),
            *("|W'z| / |z|", "|W'z - x| / |x|"),
        )
        keys = ("constant", "fraction", "images", "ratio", "error")
        cells = [(one["codes"].removeprefix("codes "), *(one[key] for key in keys)) for one in sweep]
        both["lambda"] = (header, cells)
    return both


def draw(result: Result) -> Figure:
    """Draw histograms of the ratios, one panel per kind of code."""
    ours = result["ours"]
    panels: dict[str, list[str]] = {"random codes": [], "Algorithm 2": []}
    for row in ours["ratios"]:
        panels["Algorithm 2" if row.startswith("codes") else "random codes"].append(row)
    panels = {title: rows for title, rows in panels.items() if rows}
    figure = Figure(figsize=(5 * len(panels), 3), layout="constrained")
    for panel, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for row in rows:
            draw_share(panel, ours["ratios"][row]["histogram"], row)
        panel.axvline(1, color="k", linewidth=0.8, linestyle=":")
        panel.set_title(f"{title}, {ours['layer']} ({ours['block']})", fontsize=9)
        panel.set(xlabel="|W'z| / |z|", ylabel="share of codes")
        panel.legend(fontsize=7)
    return figure
