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
        {"layer": la.name, "kind": la.kind, "input_shape": la.input_shape, "shape": la.shape, "block": la.block}
        for la in found
    ]
    return {"layers": document, "skipped": [asdict(skipped) for skipped in found.skipped]}, str(found)
