"""Table 2: the share of non-zeros after ReLU and after pooling, per layer."""

from __future__ import annotations

import math
from typing import Any

from unconv.evaluate.network import CapturedStream
from unconv.evaluate.sparsity_stats import activity_over
from unconv.measure.sparsity import NonZeros
from unconv.paper.experiment_context import Subject, blocks, label
from unconv.paper.paper_values import SETTING, TABLE_2


def run(subject: Subject) -> dict[str, Any]:
    """Count non-zeros over the images.

    Args:
        subject: The network and the images.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    stream = CapturedStream(subject.network, subject.images, lambda _: subject.names)
    activity, _ = activity_over(stream, subject.names, None, subject.progress)
    numbering = blocks(subject.stages)
    ours: dict[str, Any] = {}
    images = 0
    for name in subject.names:
        counted = activity[name]
        images = counted.activation.images
        ours[label(numbering[name])] = _row(name, counted.activation)
        if subject.stages.get(name).pooling is not None:
            ours[f"p{numbering[name][0]}"] = _row(name, counted.pooled)
    return {
        "name": "table2",
        "paper": TABLE_2,
        "ours": ours,
        "notes": [
            f"Percent of non-zeros; ours: {subject.model}, {images} images at "
            f"{'x'.join(map(str, subject.shape[1:]))}; the paper: {SETTING}.",
            "Layers are numbered by the poolings that end their blocks, so a label names the same layer only in "
            "networks that are built like VGG-16.",
        ],
    }


def _row(stage: str, counted: NonZeros) -> dict[str, Any]:
    error = 100 * counted.standard_error
    return {"stage": stage, "percent": counted.percent, "standard_error": error if math.isfinite(error) else None}


def work(subject: Subject) -> int:
    """Units of work, for a progress bar.

    Args:
        subject: The network and the images.

    Returns:
        The number.
    """
    return len(subject.names) * len(subject.images)


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Ours beside the paper's.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    rows = [
        (layer, row["stage"], row["percent"], row["standard_error"], result["paper"].get(layer))
        for layer, row in result["ours"].items()
    ]
    return ("layer", "stage", "non-zero %", "standard error", "paper, VGG-16 %"), rows
