"""Table 3: one-step IHT with learned filters, with Gaussian filters, and random activations, in two spaces.

Macro layer ``i``: ``x`` is the output of the ``i``-th pooling, ``W`` the convolution that reads it, and
``x^ = W^T M_known(W x, k)`` with unit filters, 2x2 regions and ``k`` from the measured sparsity, rescaled to ``||x||``:
the paper's setting, in which the true norm is given, so that these are errors of direction only.
In image space both go through one trained what-where decoder, with the switches of the true image.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.block_input import paper_block
from unconv.decode.transpose import transpose
from unconv.decode.what_where import encode_chain
from unconv.errors import UnconvError
from unconv.evaluate.decoders import OpenedDecoder, decoder_chain
from unconv.linalg import column, norms, relative_norm
from unconv.measure.sparsity import SparsityStatistics
from unconv.paper.context import Captured, Context, Result, Table, count_nonzeros, numbering, paper_k, regions_of
from unconv.paper.paper_values import SETTING, TABLE_3, TABLE_3_CHECKED, TABLE_3_IMAGE
from unconv.sparsity import Pooled, Window

METHODS = ("learned", "random_filters", "random_activations")
BANKS = METHODS[:2]
TRUE = "true_activations"
COMPARED = {
    "decoded": "decoded true activation",
    "decoded_in_pixels": "the same in pixels, mean not subtracted",
    "original": "original image",
}
READINGS = {
    "measured": "magnitude pooling, k from the measured sparsity",
    "half": "magnitude pooling, k at half of the regions",
    "signed": "ReLU and signed pooling, k from the measured sparsity",
}


@dataclass
class MacroLayer:
    """One row of the table, as it fills up.

    Attributes:
        number: ``i`` of the pooling ``pool(i)`` whose output is recovered.
        reads: The block that pools.
        name: The block that reads it.
        learned: Whether the weights reach that block; otherwise only Gaussian filters are measured.
        errors: Relative error of each image, by method and reading.
        decoded: Relative error of each decoded image, by method and what it is compared with, a key of ``COMPARED``.
    """

    number: int
    reads: str
    name: str
    learned: bool
    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    decoded: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def run(context: Context, decoders: Mapping[str, OpenedDecoder] | None = None) -> Result:
    """Measure the sparsity, then recover every macro layer; ``decoders`` by the block that they decode."""
    decoders = decoders or {}
    layers = macro_layers(context)
    shares = measured_shares(context, layers)
    generator = torch.Generator().manual_seed(context.seed)
    for captured in context.captured([layer.name for layer in layers]):
        for layer in layers:
            x = captured.inputs[layer.name]
            estimates = macro_estimates(context, captured, layer, shares[layer.name], generator)
            for key, estimate in estimates.items():
                layer.errors.setdefault(key, []).extend(relative_norm(estimate - x, x).tolist())
            if layer.reads in decoders:
                _compare_images(context, captured, layer, decoders[layer.reads], estimates)
            context.progress(f"macro layer {layer.number}")
    return {
        "name": "table3",
        "paper": {"activation space": TABLE_3, "image space": TABLE_3_IMAGE, "checked": TABLE_3_CHECKED},
        "ours": {
            str(layer.number): _document(context, layer, shares[layer.name], decoders.get(layer.reads))
            for layer in layers
        },
        "notes": _notes(context, layers, decoders),
    }


def macro_layers(context: Context) -> list[MacroLayer]:
    """List the blocks that read the output of a pooled block, in execution order."""
    numbers = numbering(context.blocks)
    layers = [
        MacroLayer(numbers[block.source][0], block.source, block.name, block.name in context.names)
        for block in context.blocks
        if block.source in context.names and context.blocks.get(block.source).pooling is not None
    ]
    if not layers:
        raise UnconvError(
            f"no conv block of {context.model} that the weights reach reads the output of a pooled block; "
            "Table 3 and Figure 4 need a network with one, such as vgg16"
        )
    return layers


def measured_shares(context: Context, layers: Sequence[MacroLayer]) -> dict[str, float]:
    """Return by block the share of regions that are not zero behind the network's own bias and activation."""
    counts = SparsityStatistics()
    for captured in context.captured([layer.name for layer in layers]):
        for layer in layers:
            block = context.pooled(captured.blocks.get(layer.name))
            block = block if layer.learned else block.with_gaussian(context.seed)
            count_nonzeros(counts, block, captured.inputs[layer.name])
        context.progress("counting non-zeros")
    return {name: counts[name].pooled.fraction for name in counts}


def macro_estimates(
    context: Context, captured: Captured, layer: MacroLayer, share: float, generator: torch.Generator
) -> dict[tuple[str, str], Tensor]:
    """Return what each method, in each reading, makes of a macro layer's input, in its shape."""
    x = captured.inputs[layer.name]
    block = context.pooled(captured.blocks.get(layer.name))
    k = paper_k(block, share)
    banks = {"learned": paper_block(block)} if layer.learned else {}
    banks["random_filters"] = block.with_gaussian(context.seed)
    estimates = {
        (bank, reading): estimate
        for bank, filters in banks.items()
        for reading, estimate in one_step_estimates(filters, x, k).items()
    }
    noise = torch.randn(x.shape, generator=generator).to(x)
    estimates["random_activations", "measured"] = noise * column(norms(x) / norms(noise), x)
    return estimates


def one_step_estimates(block: ConvBlock, x: Tensor, k: int) -> dict[str, Tensor]:
    """Return one-step IHT's estimates of ``x`` by reading, rescaled to its norm; filters as they are, no bias."""
    regions = block.pooling if isinstance(block.pooling, Window) else 1
    h = block.operator.forward(x)
    codes = {
        "measured": regions_of(block, k).project(h),
        "half": regions_of(block, paper_k(block, 0.5)).project(h),
        "signed": Pooled(regions, k, signed=True).project(h.relu()),
    }
    # x^ = W^T M_known(W x, k), rescaled
    return {reading: transpose(block.operator, code, norm=norms(x)) for reading, code in codes.items()}


@torch.no_grad()
def decoded_images(
    captured: Captured, layer: MacroLayer, decoder: OpenedDecoder, estimates: Mapping[tuple[str, str], Tensor]
) -> dict[str, Tensor]:
    """Return images by method, and under ``TRUE`` those of the true activations, with the true image's switches."""
    images = captured.batch.inputs.to(captured.inputs[layer.name])
    codes = encode_chain(decoder_chain(captured.blocks, layer.reads), images)
    values = {TRUE: codes[-1].values}
    values |= {method: x for (method, reading), x in estimates.items() if reading == "measured"}
    return {method: decoder.decoder(x, codes, images.shape[2:]) for method, x in values.items()}


def _compare_images(
    context: Context,
    captured: Captured,
    layer: MacroLayer,
    decoder: OpenedDecoder,
    estimates: Mapping[tuple[str, str], Tensor],
) -> None:
    images = decoded_images(captured, layer, decoder, estimates)
    original = captured.batch.inputs.to(images[TRUE])
    pixels = {method: context.preprocess.to_pixels(image, original) for method, image in images.items()}
    for method, image in images.items():
        pairs = {
            "decoded": (image, images[TRUE]),
            "original": (image, original),
            "decoded_in_pixels": (pixels[method], pixels[TRUE]),
        }
        for against, (estimate, reference) in pairs.items():
            errors = relative_norm(estimate - reference, reference).tolist()
            layer.decoded.setdefault((method, against), []).extend(errors)


def _document(context: Context, layer: MacroLayer, share: float, decoder: OpenedDecoder | None) -> Result:
    block = context.pooled(context.blocks.get(layer.name))
    means = {key: statistics.fmean(errors) for key, errors in layer.errors.items()}
    measured = {method: layer.errors.get((method, "measured"), []) for method in METHODS}
    images: dict[str, Any] | None = None
    if decoder is not None:
        images = {"decoder": decoder.describe()}
        for (method, against), errors in layer.decoded.items():
            images.setdefault(f"against_{against}", {})[method] = statistics.fmean(errors)
    return {
        "reads": layer.reads,
        "block": layer.name,
        "images": len(measured["random_activations"]),
        "share": share,
        "k": paper_k(block, share),
        "regions": paper_k(block, 1.0),
        **{method: means.get((method, "measured")) for method in METHODS},
        "standard_deviation": {m: statistics.stdev(errors) for m, errors in measured.items() if len(errors) > 1},
        "readings": {
            reading: {bank: means[bank, reading] for bank in BANKS if (bank, reading) in means} for reading in READINGS
        },
        "image_space": images,
    }


def _notes(context: Context, layers: Sequence[MacroLayer], decoders: Mapping[str, OpenedDecoder]) -> list[str]:
    notes = [
        f"Ours: {context.model}, mean over images; the paper: {SETTING}.",
        "k is the measured share of regions that are not zero after bias, ReLU and pooling, times their number. "
        "'readings' holds the same with k at half of the regions, and with ReLU and signed pooling.",
        "Learned filters are scaled to unit norm, Gaussian ones have variance 1 / (M l^2); the transposed convolution "
        "is cropped to x, and x^ rescaled to the norm of x.",
    ]
    for layer in layers:
        if not layer.learned:
            notes.append(
                f"The weights end before {layer.name}: macro layer {layer.number} has Gaussian filters only, and k "
                "from their own sparsity."
            )
        own = context.blocks.get(layer.name).pooling
        if own is not None:
            overlap = ", overlapping," if isinstance(own, Window) and own.overlapping else ""
            notes.append(f"{layer.name} pools itself: its own regions{overlap} are used as they are.")
    if any(layer.reads in decoders for layer in layers):
        notes.append(
            "Image space: activations put through one what-where decoder with the true image's switches, compared with "
            "the decoded true activation, after preprocessing and in pixels, and with the original. Each decoder was "
            "trained by us on true activations (unconv train-decoder), the paper's by Zhang et al. 2016."
        )
    return notes + [without_decoder(layer) for layer in layers if layer.reads not in decoders]


def without_decoder(layer: MacroLayer) -> str:
    """Return what to say where a macro layer has no decoder."""
    return f"Macro layer {layer.number}: {layer.reads} has no decoder; make one with unconv train-decoder"


def tables(result: Result) -> dict[str, Table]:
    """Return ours beside the paper's, in activation space, and in image space where there were decoders."""
    words = [method.replace("_", " ") for method in METHODS]
    rows, image_rows = [], []
    for number, row in result["ours"].items():
        theirs = result["paper"]["activation space"].get(number, {})
        rows.append((number, row["block"], row["k"], *(row[m] for m in METHODS), *(theirs.get(m) for m in METHODS)))
        for reading in ("half", "signed"):
            ours = row["readings"][reading]
            rows.append((number, READINGS[reading], None, *(ours.get(bank) for bank in BANKS), *[None] * 4))
        theirs = result["paper"]["image space"].get(number, {})
        for against, compared in COMPARED.items() if row["image_space"] else ():
            ours = row["image_space"][f"against_{against}"]
            printed = [theirs.get(m) if against == "decoded" else None for m in METHODS]
            image_rows.append((number, compared, ours[TRUE], *(ours.get(m) for m in METHODS), *printed))
    paper = [f"paper, {word}" for word in words]
    both: dict[str, Table] = {"activation space": (("macro layer", "conv block", "k", *words, *paper), rows)}
    if image_rows:
        both["image space"] = (("macro layer", "compared with", TRUE.replace("_", " "), *words, *paper), image_rows)
    return both
