"""Table 4: coherence of the filters of each layer, learned beside Gaussian, at both labellings of the paper's row."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from unconv.evaluate.evaluation import coherence_document
from unconv.paper.experiment_context import Subject, blocks, label
from unconv.paper.paper_values import SETTING, TABLE_4

# the value printed at conv(1,1) is that of conv(1,2), and so on
ONE_LATER = {layer: TABLE_4[before] for before, layer in pairwise(TABLE_4)}
KINDS = ("signed", "absolute", "shifted")


def run(subject: Subject) -> dict[str, Any]:
    """Measure the coherence of every stage.

    Args:
        subject: The network; its images are not read.

    Returns:
        ``name``, ``paper``, ``ours`` and ``notes``, fit for JSON.
    """
    numbering = blocks(subject.stages)
    ours = {
        label(numbering[name]): {"stage": name} | coherence_document(subject.stages.get(name), subject.seed)
        for name in subject.names
    }
    return {
        "name": "table4",
        "paper": {"as_printed": TABLE_4, "one_layer_later": ONE_LATER},
        "ours": ours,
        "notes": [
            f"Ours: {subject.model}, batch norm folded into the filters where there is one; the paper: {SETTING}.",
            "The paper's learned row is the signed maximum over whole filters. 'absolute' is the maximum of the "
            "magnitude, 'shifted' that over all overlaps of two filters: the coherence that model-RIP meets.",
            "On Caffe's VGG weights the printed labels stand one layer early: the value at conv(i,j) is that of the "
            "next convolution. Both labellings are shown.",
        ],
    }


def table(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Ours beside the paper's at both labellings.

    Args:
        result: What ``run`` returned.

    Returns:
        Header and rows.
    """
    header = (
        "layer",
        "stage",
        *(f"{bank} {kind}" for bank in ("learned", "random") for kind in KINDS),
        *(f"paper {bank}, {where}" for where in ("as printed", "moved one on") for bank in ("learned", "random")),
    )
    rows = []
    for layer, row in result["ours"].items():
        theirs = [
            result["paper"][where].get(layer, {}).get(bank)
            for where in ("as_printed", "one_layer_later")
            for bank in ("learned", "random")
        ]
        rows.append((
            layer,
            row["stage"],
            *(row[bank][kind] for bank in ("learned", "random") for kind in KINDS),
            *theirs,
        ))
    return header, rows
