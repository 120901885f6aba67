"""``unconv layers``: what can be inverted in a model, and why the rest was left out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from unconv import api
from unconv.options import Layers


def run(options: Layers) -> tuple[dict[str, Any], str]:
    """List the layers; return the JSON document and its text."""
    found = api.layers(options.model, options.images or None, **options.keywords())
    rows = [(layer.name, layer.kind, list(layer.input_shape), list(layer.shape), layer.block) for layer in found]
    document = {
        "layers": [dict(zip(("layer", "kind", "input_shape", "shape", "block"), row, strict=True)) for row in rows],
        "skipped": [asdict(skipped) for skipped in found.skipped],
    }
    return document, str(found)
