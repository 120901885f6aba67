"""Figure 4 (and 5): images decoded from a macro layer's true activation, from one-step IHT's, and from random ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.decoders import OpenedDecoder
from unconv.images import to_uint8
from unconv.linalg import relative_norm
from unconv.paper.context import Context, Result, Table
from unconv.paper.paper_values import SETTING
from unconv.paper.table3 import (
    METHODS,
    TRUE,
    decoded_images,
    macro_estimates,
    macro_layers,
    measured_shares,
    without_decoder,
)

SHOWN = 4  # images
ROWS = {
    "original": "original",
    TRUE: "true activation",
    "learned": "one-step IHT,\nlearned filters",
    "random_filters": "one-step IHT,\nGaussian filters",
    "random_activations": "random activation",
}


def run(context: Context, decoders: Mapping[str, OpenedDecoder], shown: int = SHOWN) -> Result:
    """Decode the first images of one size from every macro layer that has a decoder.

    Besides what every experiment returns, ``pictures`` holds per macro layer an array ``(rows, images, H, W, 3)``.
    """
    layers = macro_layers(context)
    decoded = [layer for layer in layers if layer.reads in decoders]
    if not decoded:
        raise UnconvError(without_decoder(layers[0]))
    shares = measured_shares(context, layers)
    generator = torch.Generator().manual_seed(context.seed)
    ours = {
        str(layer.number): {
            "reads": layer.reads,
            "block": layer.name,
            "decoder": decoders[layer.reads].describe(),
            "images": [],
        }
        for layer in decoded
    }
    pictures: dict[str, dict[str, list[np.ndarray]]] = {number: {row: [] for row in ROWS} for number in ours}
    left = shown
    for captured in context.captured([layer.name for layer in layers]):
        if left <= 0:
            break
        if tuple(captured.batch.inputs.shape[1:]) != context.shape:
            continue
        for layer in decoded:
            estimates = macro_estimates(context, captured, layer, shares[layer.name], generator)
            original = captured.batch.inputs.to(captured.inputs[layer.name])
            images = decoded_images(captured, layer, decoders[layer.reads], estimates)
            errors = {method: relative_norm(image - original, original).tolist() for method, image in images.items()}
            for i, file in enumerate(captured.batch.names[:left]):
                row = {"file": file, "relative_error": {method: errors[method][i] for method in errors}}
                ours[str(layer.number)]["images"].append(row)
            for method, image in {"original": original, **images}.items():
                pictures[str(layer.number)][method] += _pictures(context, image[:left], original[:left])
            context.progress(f"drawing macro layer {layer.number}")
        left -= len(captured.batch.names)
    return {
        "name": "fig4",
        "paper": "the same rows as pictures, without numbers (figure 5: for other layers)",
        "ours": ours,
        "notes": [
            f"Ours: {context.model}; the paper: {SETTING}. Every row is one what-where decoder's image, with the "
            "switches of the true image; in brackets the mean relative error against the original image, after "
            "preprocessing.",
            *(without_decoder(layer) for layer in layers if layer.reads not in decoders),
        ],
        "pictures": {
            number: np.stack([np.stack(images) for images in rows.values() if images])
            for number, rows in pictures.items()
        },
    }


def _pictures(context: Context, x: Tensor, reference: Tensor) -> list[np.ndarray]:
    return [to_uint8(picture) for picture in context.preprocess.to_pixels(x, reference).cpu()]


def tables(result: Result) -> dict[str, Table]:
    """Return the relative error of every picture against the original."""
    methods = (TRUE, *METHODS)
    rows = [
        (number, image["file"], *(image["relative_error"].get(method) for method in methods))
        for number, layer in result["ours"].items()
        for image in layer["images"]
    ]
    return {"fig4": (("macro layer", "image", *(method.replace("_", " ") for method in methods)), rows)}


def draw(result: Result) -> Figure:
    """Draw one panel per macro layer, one row per kind of activation, one column per image."""
    pictures: dict[str, np.ndarray] = result["pictures"]
    columns = max(sheet.shape[1] for sheet in pictures.values())
    figure = Figure(figsize=(1.7 * columns * len(pictures) + 2, 1.5 * len(ROWS) + 0.8), layout="constrained")
    panels = figure.subplots(1, len(pictures), squeeze=False).flatten()
    for panel, (number, sheet) in zip(panels, pictures.items(), strict=True):
        rows, count, height, width, _ = sheet.shape
        panel.imshow(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, count * width, 3), interpolation="nearest")
        layer = result["ours"][number]
        labels = [ROWS["original"]]
        for method in ROWS:
            if method in layer["images"][0]["relative_error"]:
                errors = [image["relative_error"][method] for image in layer["images"]]
                labels.append(f"{ROWS[method]}\n({sum(errors) / len(errors):.2f})")
        panel.set_yticks([(i + 0.5) * height - 0.5 for i in range(rows)], labels, fontsize=8)
        panel.set_xticks([])
        panel.tick_params(length=0)
        panel.set_title(f"macro layer {number}: decoder of {layer['reads']}, IHT at {layer['block']}", fontsize=9)
    return figure
