"""Figure 4: images decoded from a macro layer's true activation, from one-step IHT's, and from random ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from unconv.evaluate.decoders import OpenedDecoder
from unconv.images import to_uint8
from unconv.linalg import relative_norm
from unconv.paper.context import Context, Result, Table
from unconv.paper.macro_layers import (
    DECODERS,
    METHODS,
    TRUE,
    fit_linear,
    image_decoders,
    inputs_of,
    macro_estimates,
    macro_layers,
    measured_shares,
)
from unconv.paper.paper_values import SETTING

SHOWN = 4  # images
ROWS = {
    "original": "original",
    TRUE: "true activation",
    "learned": "one-step IHT,\nlearned filters",
    "random_filters": "one-step IHT,\nGaussian filters",
    "random_activations": "random activation",
}


def run(context: Context, trained: Mapping[str, OpenedDecoder] | None = None, shown: int = SHOWN) -> Result:
    """Decode the first images of one size from every macro layer, by its trained decoder or else by a linear one.

    Besides what every experiment returns, ``pictures`` holds per macro layer an array ``(rows, images, H, W, 3)``.
    """
    trained = trained or {}
    layers = macro_layers(context)
    shares = measured_shares(context, layers)
    by_regression = [layer for layer in layers if layer.reads not in trained]
    linear = fit_linear(context, by_regression) if by_regression else {}
    generator = torch.Generator().manual_seed(context.seed)
    ours: dict[str, Result] = {}
    pictures: dict[str, dict[str, list[np.ndarray]]] = {}
    left = shown
    for captured in context.captured(inputs_of(layers)):
        original = captured.batch.inputs.to(context.network.device)
        if left <= 0:
            break
        if tuple(original.shape[1:]) != context.shape:
            continue
        for layer in layers:
            estimates = macro_estimates(context, captured, layer, shares[layer.name], generator)
            decoders = image_decoders(context, captured, layer, trained, linear)
            kind = next(k for k in ("trained", "linear_switches", "linear") if k in decoders)
            activations = {TRUE: captured.inputs[layer.name]} | estimates
            images = {method: decoders[kind](z) for method, z in activations.items()}
            errors = {method: relative_norm(image - original, original).tolist() for method, image in images.items()}
            number = str(layer.number)
            file = trained[layer.reads].describe() if layer.reads in trained else None
            row = ours.setdefault(
                number, {"reads": layer.reads, "block": layer.name, "kind": kind, "decoder": file, "images": []}
            )
            row["images"] += [
                {"file": name, "relative_error": {method: errors[method][i] for method in errors}}
                for i, name in enumerate(captured.batch.names[:left])
            ]
            for method, image in {"original": original, **images}.items():
                pixels = context.network.preprocess.to_pixels(image[:left], original[:left]).cpu()
                pictures.setdefault(number, {}).setdefault(method, []).extend(map(to_uint8, pixels))
            context.progress(f"drawing macro layer {number}")
        left -= len(captured.batch.names)
    return {
        "name": "fig4",
        "paper": "the same rows as pictures, without numbers (figure 5: for other layers)",
        "ours": ours,
        "notes": [
            f"Ours: {context.model}; the paper: {SETTING}. Every row is one decoder's image, with the switches of the "
            "true image: a what-where decoder where one was given (unconv train-decoder), else a linear one, which "
            "needs no training. In brackets the mean relative error against the original image, after preprocessing.",
        ],
        "pictures": {
            number: np.stack([np.stack(rows[m]) for m in ROWS if m in rows]) for number, rows in pictures.items()
        },
    }


def tables(result: Result) -> dict[str, Table]:
    """Return the relative error of every picture against the original."""
    methods = (TRUE, *METHODS)
    rows = [
        (number, DECODERS[layer["kind"]], image["file"], *(image["relative_error"].get(method) for method in methods))
        for number, layer in result["ours"].items()
        for image in layer["images"]
    ]
    return {"fig4": (("macro layer", "decoder", "image", *(method.replace("_", " ") for method in methods)), rows)}


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
        for method in layer["images"][0]["relative_error"]:
            errors = [image["relative_error"][method] for image in layer["images"]]
            labels.append(f"{ROWS[method]}\n({sum(errors) / len(errors):.2f})")
        panel.set_yticks([(i + 0.5) * height - 0.5 for i in range(rows)], labels, fontsize=8)
        panel.set_xticks([])
        panel.tick_params(length=0)
        decoder = DECODERS[layer["kind"]].partition(",")[0]
        panel.set_title(
            f"macro layer {number}: {layer['reads']} by a {decoder} decoder, IHT at {layer['block']}", fontsize=9
        )
    return figure
