"""Figure 1: the architecture, drawn from the stages that were traced."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unconv.paper.experiment_context import Subject, blocks, label

COLOURS = {"maxpool": "#b03a2e", "avgpool": "#e0b23c", None: "#33628c"}


def run(subject: Subject) -> dict[str, Any]:
    """List the stages of the network in the paper's numbering.

    Args:
        subject: The network; its images are not read.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    numbering = blocks(subject.stages)
    ours = [
        {
            "layer": label(numbering[stage.name]),
            "stage": stage.name,
            "kind": stage.kind,
            "input_shape": list(stage.input_shape),
            "activation_shape": list(stage.operator.output_shape),
            "code_shape": list(stage.code_shape),
            "source": stage.source,
        }
        for stage in subject.stages
    ]
    left_out = [f"{skipped.module} is no stage: {skipped.reason}." for skipped in subject.stages.skipped]
    return {
        "name": "fig1",
        "paper": "blocks of conv(i,j) and ReLU, each ended by pool(i) (2x2 max pooling); macro layer i reads pool(i)",
        "ours": ours,
        "notes": [
            f"Traced from {subject.model} at {'x'.join(map(str, subject.shape))}; "
            "nothing is assumed of its architecture.",
            *left_out,
        ],
    }


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """One row per stage.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    fields = ("layer", "stage", "kind", "source", "input_shape", "activation_shape", "code_shape")
    header = ("layer", "stage", "kind", "reads", "input", "activation", "code")
    return header, [tuple(stage[field] for field in fields) for stage in result["ours"]]


def draw(result: dict[str, Any]) -> Figure:
    """Boxes from left to right: height by the side of the map, width by the channels, poolings in colour.

    Args:
        result: What ``run`` returned.

    Returns:
        The figure.
    """
    stages = result["ours"]
    figure = Figure(figsize=(max(6.0, 0.75 * len(stages)), 3.4), layout="constrained")
    panel = figure.subplots()
    tallest = max(side for stage in stages for side in stage["activation_shape"][1:])
    left = 0.0
    for stage in stages:
        centre = _box(panel, left, stage["activation_shape"], tallest, COLOURS[None])
        top = f"{stage['layer']}\n{stage['activation_shape'][0]}"
        panel.annotate(top, (centre, 1.06), ha="center", va="bottom", fontsize=7)
        panel.annotate(
            "x".join(map(str, stage["activation_shape"][1:])), (centre, -0.06), ha="center", va="top", fontsize=6
        )
        left += _width(stage["activation_shape"])
        pooling = stage["kind"].rpartition("+")[2]
        if pooling in COLOURS:
            left += 0.06
            _box(panel, left, stage["code_shape"], tallest, COLOURS[pooling])
            left += _width(stage["code_shape"])
        left += 0.45
    kinds = {stage["kind"].rpartition("+")[2] for stage in stages}
    for pooling, colour in COLOURS.items():
        if pooling and pooling not in kinds:
            continue
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
