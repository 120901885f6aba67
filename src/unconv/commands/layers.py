"""``unconv layers``: what can be inverted in a model, and why the rest was left out."""

from __future__ import annotations

from typing import Any

from unconv import api
from unconv.commands import format_table, image_paths
from unconv.options import Layers


def run(options: Layers) -> tuple[dict[str, Any], str]:
    """List the layers; return the JSON document and its text."""
    found = api.layers(options.model, image_paths(options), **options.keywords())
    document = {
        "layers": [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "input_shape": None if layer.input_shape is None else list(layer.input_shape),
                "shape": list(layer.shape),
                "block": layer.block,
            }
            for layer in found.layers
        ],
        "skipped": [{"module": skipped.module, "reason": skipped.reason} for skipped in found.skipped],
    }
    rows = [
        (d["layer"], d["kind"], d["input_shape"], d["shape"], "yes" if d["block"] else "") for d in document["layers"]
    ]
    table = format_table(("layer", "kind", "input", "output", "conv block"), rows)
    lines = [f"skipped {skipped['module']}: {skipped['reason']}" for skipped in document["skipped"]]
    return document, "\n".join([table, *lines])
