"""``unconv layers``: what can be inverted in a model, and why the rest was left out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from unconv.api_invert import layers
from unconv.options import Layers


def run(options: Layers) -> tuple[dict[str, Any], str]:
    """List the layers; return the JSON document and its text."""
    arguments = options.keywords()
    found = layers(options.model, arguments.pop("images", None), **arguments)
    document = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "input_shape": list(layer.input_shape),
            "shape": list(layer.shape),
            "block": layer.block,
        }
        for layer in found
    ]
    return {"layers": document, "skipped": [asdict(skipped) for skipped in found.skipped]}, str(found)
