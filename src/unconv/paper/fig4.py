"""Figure 4 (and 5): images decoded from a macro layer's true activation, from one-step IHT's, and from random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from unconv.errors import UnconvError
from unconv.evaluate.decoders import OpenedDecoder
from unconv.images import to_uint8
from unconv.linalg import relative_norm
from unconv.paper.experiment_context import Subject
from unconv.paper.paper_values import SETTING
from unconv.paper.table3 import (
    METHODS,
    TRUE,
    captured_macro_layers,
    decoded_images,
    macro_estimates,
    macro_layers,
    measured_shares,
    without_decoder,
)

SHOWN = 4
ROWS = {
    "original": "original",
    TRUE: "true activation",
    "learned": "one-step IHT,\nlearned filters",
    "random_filters": "one-step IHT,\nGaussian filters",
    "random_activations": "random activation",
}


def run(subject: Subject, decoders: Mapping[str, OpenedDecoder], shown: int = SHOWN) -> dict[str, Any]:
    """Decode the first images of one size from every macro layer that has a decoder.

    Args:
        subject: The network and the images.
        decoders: Decoders by the stage that they decode.
        shown: Number of images.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON, and ``pictures``: per macro layer an array of
        shape ``(rows, images, H, W, 3)``, uint8.

    Raises:
        UnconvError: If no macro layer has a decoder.
    """
    layers = macro_layers(subject)
    stream = captured_macro_layers(subject, layers)
    with_decoder = [layer for layer in layers if layer.reads in decoders]
    if not with_decoder:
        raise UnconvError(without_decoder(layers[0]))
    shares = measured_shares(subject, stream, layers)
    generator = torch.Generator().manual_seed(subject.seed)
    pictures: dict[str, dict[str, list[np.ndarray]]] = {str(layer.number): {} for layer in with_decoder}
    ours: dict[str, Any] = {
        str(layer.number): {"reads": layer.reads, "stage": layer.stage, "decoder": decoders[layer.reads].describe()}
        | {"images": []}
        for layer in with_decoder
    }
    first: tuple[int, ...] | None = None
    for captured in stream:
        shape = tuple(captured.batch.inputs.shape[1:])
        first = first or shape
        left = shown - len(next(iter(ours.values()))["images"])
        if left <= 0:
            break
        if shape != first:
            continue
        for layer in with_decoder:
            estimates = macro_estimates(subject, captured, layer, shares[layer.stage], generator)
            measured = {method: values for (method, reading), values in estimates.items() if reading == "measured"}
            original = captured.batch.inputs.to(captured.inputs[layer.stage])
            images = {"original": original}
            images |= decoded_images(captured, layer, decoders[layer.reads], measured)
            errors = {method: relative_norm(image - original, original).tolist() for method, image in images.items()}
            for i, file in enumerate(captured.batch.names[:left]):
                row = {"file": file, "relative_error": {m: errors[m][i] for m in errors if m != "original"}}
                ours[str(layer.number)]["images"].append(row)
            for method, image in images.items():
                shown_now = _pictures(subject, image[:left], original[:left])
                pictures[str(layer.number)].setdefault(method, []).extend(shown_now)
            subject.progress(f"drawing macro layer {layer.number}", len(original))
    return {
        "name": "fig4",
        "paper": "the same rows as pictures, without numbers (figure 5: for other layers)",
        "ours": ours,
        "notes": [
            f"Ours: {subject.model}; the paper: {SETTING}. Every row is one what-where decoder's image, with the "
            "switches of the true image; in brackets the mean relative error against the original image, after "
            "preprocessing.",
            *(without_decoder(layer) for layer in layers if layer.reads not in decoders),
        ],
        "pictures": {
            number: np.stack([np.stack(found[row]) for row in ROWS if row in found])
            for number, found in pictures.items()
        },
    }


def _pictures(subject: Subject, x: Tensor, reference: Tensor) -> list[np.ndarray]:
    pixels = subject.network.preprocess.to_pixels(x, reference).cpu().clamp(0, 1)
    return [to_uint8(picture) for picture in pixels]


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return len(macro_layers(subject)) * (len(subject.images) + min(SHOWN, len(subject.images)))


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Relative error of every picture against the original.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    methods = (TRUE, *METHODS)
    rows = [
        (number, image["file"], *(image["relative_error"].get(method) for method in methods))
        for number, layer in result["ours"].items()
        for image in layer["images"]
    ]
    return ("macro layer", "image", *(method.replace("_", " ") for method in methods)), rows


def draw(result: dict[str, Any]) -> Figure:
    """The sheet: one panel per macro layer, one row per kind of activation, one column per image.

    Args:
        result: What ``run`` returned.

    Returns:
        The figure.
    """
    pictures: dict[str, np.ndarray] = result["pictures"]
    sizes = [sheet.shape for sheet in pictures.values()]
    columns = max(shape[1] for shape in sizes)
    figure = Figure(figsize=(1.7 * columns * len(sizes) + 2, 1.5 * len(ROWS) + 0.8), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False).flatten()
    for panel, (number, sheet) in zip(panels, pictures.items(), strict=True):
        rows, count, height, width, _ = sheet.shape
        panel.imshow(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, count * width, 3), interpolation="nearest")
        layer = result["ours"][number]
        shown = [row for row in ROWS if row in layer["images"][0]["relative_error"] or row == "original"]
        labels = []
        for row in shown:
            errors = [image["relative_error"][row] for image in layer["images"] if row != "original"]
            labels.append(f"{ROWS[row]}\n({sum(errors) / len(errors):.2f})" if errors else ROWS[row])
        panel.set_yticks([(i + 0.5) * height - 0.5 for i in range(rows)], labels, fontsize=8)
        panel.set_xticks([])
        panel.tick_params(length=0)
        panel.set_title(f"macro layer {number}: decoder of {layer['reads']}, IHT at {layer['stage']}", fontsize=9)
    return figure
