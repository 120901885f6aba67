"""``unconv stages``: what was found in the model, and why the rest was left out."""

from __future__ import annotations

from typing import Any

from unconv.commands.loading import check_named, open_model, rows_of_text
from unconv.commands.options import Layers
from unconv.evaluate.evaluation import stage_document


def run(options: Layers) -> tuple[dict[str, Any], str]:
    """List the stages.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    loaded, network = open_model(options)
    found = network.stages(loaded.example().shape[1:])
    check_named(found, options.stages)
    stages = [s for s in found.stages if not options.stages or s.name in options.stages]
    document = {
        "stages": [stage_document(s) | {"source": s.source} for s in stages],
        "skipped": [{"module": s.module, "reason": s.reason} for s in found.skipped],
    }
    header = ("stage", "kind", "input", "code", "reads")
    text = rows_of_text(header, [tuple(row.values()) for row in document["stages"]])
    lines = [f"skipped {s['module']}: {s['reason']}" for s in document["skipped"]]
    if any(stage.source is None for stage in stages):
        lines.append("reads -: branches meet there, so no chain of stages leads from that input back to the image")
    return document, "\n".join([text, *lines])
