"""Figure 1: the architecture, drawn from the conv blocks that were traced."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unconv.paper.context import Context, Result, Table, label, numbering

COLOURS = {"maxpool": "#b03a2e", "avgpool": "#e0b23c", None: "#33628c"}
FIELDS = {
    "layer": "layer",
    "block": "conv block",
    "kind": "kind",
    "source": "reads",
    "input_shape": "input",
    "activation_shape": "activation",
    "code_shape": "code",
}


def run(context: Context) -> Result:
    """List the conv blocks of the network in the paper's numbering; no image is read."""
    numbers = numbering(context.blocks)
    ours = [
        {
            "layer": label(numbers[block.name]),
            "block": block.name,
            "kind": block.kind,
            "input_shape": list(block.input_shape),
            "activation_shape": list(block.operator.output_shape),
            "code_shape": list(block.code_shape),
            "source": block.source,
        }
        for block in context.blocks
    ]
    size = "x".join(map(str, context.shape))
    return {
        "name": "fig1",
        "paper": "blocks of conv(i,j) and ReLU, each ended by pool(i) (2x2 max pooling); macro layer i reads pool(i)",
        "ours": ours,
        "notes": [
            f"Traced from {context.model} at {size}; nothing is assumed of its architecture.",
            *(f"{skipped.module} is no conv block: {skipped.reason}." for skipped in context.blocks.skipped),
        ],
    }


def tables(result: Result) -> dict[str, Table]:
    """Return one row per block."""
    return {"fig1": (tuple(FIELDS.values()), [tuple(row[field] for field in FIELDS) for row in result["ours"]])}


def draw(result: Result) -> Figure:
    """Draw boxes from left to right: height by the side of the map, width by the channels, poolings in colour."""
    blocks = result["ours"]
    figure = Figure(figsize=(max(6.0, 0.75 * len(blocks)), 3.4), layout="constrained")
    panel = figure.subplots()
    tallest = max(side for block in blocks for side in block["activation_shape"][1:])
    left = 0.0
    for block in blocks:
        shape = block["activation_shape"]
        centre = _box(panel, left, shape, tallest, COLOURS[None])
        panel.annotate(f"{block['layer']}\n{shape[0]}", (centre, 1.06), ha="center", va="bottom", fontsize=7)
        panel.annotate("x".join(map(str, shape[1:])), (centre, -0.06), ha="center", va="top", fontsize=6)
        left += _width(shape)
        pooling = block["kind"].rpartition("+")[2]
        if pooling in COLOURS:
            left += 0.06
            _box(panel, left, block["code_shape"], tallest, COLOURS[pooling])
            left += _width(block["code_shape"])
        left += 0.45
    kinds = {block["kind"].rpartition("+")[2] for block in blocks}
    for pooling, colour in COLOURS.items():
        if pooling is None or pooling in kinds:
            panel.add_patch(Rectangle((0, 0), 0, 0, color=colour, label=pooling or "convolution and activation"))
    panel.set(xlim=(-0.2, left), ylim=(-0.3, 1.4))
    panel.set_axis_off()
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=7, frameon=False)
    return figure


def _width(shape: list[int]) -> float:
    return 0.08 * math.log2(1 + shape[0])


def _box(panel: Any, left: float, shape: list[int], tallest: int, colour: str) -> float:
    # the side of the map on a root scale, or late layers would be lines
    height = math.sqrt(max(shape[1:]) / tallest)
    panel.add_patch(Rectangle((left, (1 - height) / 2), _width(shape), height, color=colour))
    return left + _width(shape) / 2
