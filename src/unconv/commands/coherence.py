"""``unconv coherence``: the largest cosines between filters, learned and Gaussian (Table 4)."""

from __future__ import annotations

from typing import Any

from unconv.commands.loading import choose_stages, open_model, rows_of_text
from unconv.commands.options import Coherence
from unconv.conv_block import ConvBlock
from unconv.evaluate.evaluation import coherence_document

KINDS = ("signed", "absolute", "shifted")


def run(options: Coherence) -> tuple[dict[str, Any], str]:
    """Measure the coherence of every stage's filters.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    loaded, network = open_model(options)
    found = network.stages(loaded.example().shape[1:])
    names, _ = choose_stages(loaded, found, options.stages)
    stages = [measure(found.get(name), options) for name in names]
    header = ("stage", *(f"{bank} {kind}" for bank in ("learned", "random") for kind in KINDS))
    rows = [(s["stage"], *(s[bank][kind] for bank in ("learned", "random") for kind in KINDS)) for s in stages]
    return {"stages": stages}, rows_of_text(header, rows)


def measure(stage: ConvBlock, options: Coherence) -> dict[str, Any]:
    """Measure one stage.

    Args:
        stage: A stage of the network.
        options: The options.

    Returns:
        What ``coherence --json`` prints of a stage.
    """
    return {"stage": stage.name} | coherence_document(stage, options.seed)
