"""Table 2: the share of non-zeros after ReLU and after pooling, per layer."""

from __future__ import annotations

from unconv.io import finite
from unconv.measure.sparsity import NonZeros
from unconv.paper.context import Context, Result, Table, label, numbering
from unconv.paper.paper_values import SETTING, TABLE_2


def run(context: Context) -> Result:
    """Count non-zeros over the images."""
    context.progress("counting non-zeros")
    statistics = context.count_nonzeros(context.names)
    numbers = numbering(context.blocks)
    ours = {}
    for name in context.names:
        ours[label(numbers[name])] = _row(name, statistics[name].activation)
        if context.blocks.get(name).pooling is not None:
            ours[f"p{numbers[name][0]}"] = _row(name, statistics[name].pooled)
    images = statistics[context.names[-1]].activation.images
    size = "x".join(map(str, context.shape[1:]))
    return {
        "name": "table2",
        "paper": TABLE_2,
        "ours": ours,
        "notes": [
            f"Percent of non-zeros; ours: {context.model}, {images} images at {size}; the paper: {SETTING}.",
            "Layers are numbered by the poolings that end their blocks, so a label names the same layer only in "
            "networks that are built like VGG-16.",
        ],
    }


def _row(name: str, counts: NonZeros) -> Result:
    return {"block": name, "percent": counts.percent, "standard_error": finite(100 * counts.standard_error)}


def tables(result: Result) -> dict[str, Table]:
    """Return ours beside the paper's."""
    rows = [
        (layer, row["block"], row["percent"], row["standard_error"], result["paper"].get(layer))
        for layer, row in result["ours"].items()
    ]
    return {"table2": (("layer", "conv block", "non-zero %", "standard error", "paper, VGG-16 %"), rows)}
