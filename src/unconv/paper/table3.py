"""Table 3: one-step IHT with learned filters, with Gaussian filters, and random activations, in two spaces.

In activation space ``x^`` is compared with ``x``, in image space what a decoder makes of both: a trained what-where
decoder, as in the paper, where one is given, and linear decoders, with and without the pooling's switches.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unconv.evaluate.block_reconstruction import paper_k
from unconv.evaluate.decoders import OpenedDecoder
from unconv.evaluate.network import Captured
from unconv.linalg import relative_norm
from unconv.paper.context import Context, Result, Table
from unconv.paper.macro_layers import (
    DECODERS,
    METHODS,
    TRUE,
    MacroLayer,
    fit_linear,
    image_decoders,
    inputs_of,
    macro_estimates,
    macro_layers,
    measured_shares,
)
from unconv.paper.paper_values import SETTING, TABLE_3, TABLE_3_IMAGE
from unconv.sparsity import Window

COMPARED = {
    "decoded": "decoded true activation",
    "decoded_in_pixels": "the same in pixels, mean not subtracted",
    "original": "original image",
}


def run(context: Context, trained: Mapping[str, OpenedDecoder] | None = None) -> Result:
    """Measure the sparsity, then recover every macro layer; ``trained``: decoders by the block that they decode."""
    trained = trained or {}
    layers = macro_layers(context)
    shares = measured_shares(context, layers)
    linear = fit_linear(context, layers)
    generator = torch.Generator().manual_seed(context.seed)
    # relative error of every image, by macro layer and what it is of
    errors: dict[int, dict[tuple[str, ...], list[float]]] = {layer.number: {} for layer in layers}
    for captured in context.captured(inputs_of(layers)):
        for layer in layers:
            x = captured.inputs[layer.name]
            estimates = macro_estimates(context, captured, layer, shares[layer.name], generator)
            activations = {TRUE: x} | estimates
            found = [((method,), relative_norm(estimate - x, x)) for method, estimate in estimates.items()]
            for name, decode in image_decoders(context, captured, layer, trained, linear).items():
                images = {method: decode(z) for method, z in activations.items()}
                found += [((name, *key), e) for key, e in _image_errors(context, captured, images)]
            for key, values in found:
                errors[layer.number].setdefault(key, []).extend(values.tolist())
            context.progress(f"macro layer {layer.number}")
    return {
        "name": "table3",
        "paper": {"activation space": TABLE_3, "image space": TABLE_3_IMAGE},
        "ours": {
            str(layer.number): _document(context, layer, shares[layer.name], errors[layer.number])
            | {"decoder": trained[layer.reads].describe() if layer.reads in trained else None}
            for layer in layers
        },
        "notes": _notes(context, layers, trained),
    }


def _image_errors(
    context: Context, captured: Captured, images: Mapping[str, Tensor]
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    original = captured.batch.inputs.to(images[TRUE])
    pixels = {method: context.network.preprocess.to_pixels(image, original) for method, image in images.items()}
    for method, image in images.items():
        yield (method, "decoded"), relative_norm(image - images[TRUE], images[TRUE])
        yield (method, "original"), relative_norm(image - original, original)
        yield (method, "decoded_in_pixels"), relative_norm(pixels[method] - pixels[TRUE], pixels[TRUE])


def _document(
    context: Context, layer: MacroLayer, share: float, errors: Mapping[tuple[str, ...], list[float]]
) -> Result:
    block = context.pooled(context.blocks.get(layer.name))
    means = {key: statistics.fmean(values) for key, values in errors.items()}
    measured = {method: errors[method,] for method in METHODS if (method,) in errors}
    image_space: dict[str, dict[str, dict[str, float]]] = {}
    for (decoder, method, against), mean in ((key, mean) for key, mean in means.items() if len(key) == 3):
        image_space.setdefault(decoder, {}).setdefault(against, {})[method] = mean
    return {
        "reads": layer.reads,
        "block": layer.name,
        "images": len(measured["random_activations"]),
        "share": share,
        "k": paper_k(block, share),
        "regions": paper_k(block, 1.0),
        **{method: means.get((method,)) for method in METHODS},
        "standard_deviation": {m: statistics.stdev(values) for m, values in measured.items() if len(values) > 1},
        "image_space": image_space,
    }


def _notes(context: Context, layers: Sequence[MacroLayer], trained: Mapping[str, OpenedDecoder]) -> list[str]:
    notes = [
        f"Ours: {context.model}, mean over images; the paper: {SETTING}.",
        "k is the measured share of regions that are not zero after bias, ReLU and pooling, times their number.",
        "Learned filters are scaled to unit norm, Gaussian ones have variance 1 / (M l^2); the transposed convolution "
        "is cropped to x, and x^ rescaled to the norm of x.",
        "Image space: activations put through one decoder with the true image's switches, compared with the decoded "
        "true activation, after preprocessing and in pixels, and with the original. Linear decoders are fitted in "
        "closed form to true activations of synthetic images and packaged photographs, one to the pooled values, one "
        "to these with a channel for every place of a region, which the switch chooses. The paper's decoder was "
        "trained by Zhang et al. 2016.",
    ]
    if trained:
        notes.append("Trained decoders are ours (unconv train-decoder), on true activations.")
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
        if layer.reads not in trained:
            notes.append(f"Macro layer {layer.number} has no trained decoder; unconv train-decoder makes one.")
    return notes


def tables(result: Result) -> dict[str, Table]:
    """Return ours beside the paper's, in activation space and in image space."""
    words = [method.replace("_", " ") for method in METHODS]
    rows: list[tuple[Any, ...]] = []
    image_rows: list[tuple[Any, ...]] = []
    for number, row in result["ours"].items():
        theirs = result["paper"]["activation space"].get(number, {})
        rows.append((number, row["block"], row["k"], *(row[m] for m in METHODS), *(theirs.get(m) for m in METHODS)))
        theirs = result["paper"]["image space"].get(number, {})
        for decoder, errors in row["image_space"].items():
            for against, compared in COMPARED.items():
                ours = [errors[against].get(method) for method in (TRUE, *METHODS)]
                # the paper's decoder is a trained one, and it says nothing of the original image
                printed = [theirs.get(m) if (decoder, against) == ("trained", "decoded") else None for m in METHODS]
                image_rows.append((number, DECODERS[decoder], compared, *ours, *printed))
    paper = [f"paper, {word}" for word in words]
    header = ("macro layer", "decoder", "compared with", TRUE.replace("_", " "), *words, *paper)
    return {
        "activation space": (("macro layer", "conv block", "k", *words, *paper), rows),
        "image space": (header, image_rows),
    }
