"""``unconv unseen``: what no attacker can do with a layer's noisy features, beside what ours does."""

from __future__ import annotations

from typing import Any

from unconv.api_unseen import leakage
from unconv.commands import format_table
from unconv.errors import UsageError
from unconv.options import Unseen

LEGEND = """\
PSNR in dB, of pixels in [0, 1]. unbiased, any attacker: ceilings; no unbiased attacker, and no attacker at all on
average over the prior (the Bayesian bound), gets more. A low ceiling is a defence, a high one promises nothing.
ours: what our attack got in its passes; gap: any attacker less ours. prior: the mean image, the answer of one who
sees nothing. bits: information per pixel, an estimate."""


def run(options: Unseen) -> tuple[dict[str, Any], str]:
    """Bound the leakage of layers; return the JSON document and its text."""
    if not options.layer:
        raise UsageError(f"--layer is missing; see unconv layers {options.model}")
    documents = [leakage(options.model, layer, **options.keywords()).document() for layer in options.layer]
    return {"layers": documents}, _text(documents)


def _text(documents: list[dict[str, Any]]) -> str:
    rows = []
    for found in documents:
        psnr = found["psnr"] or {}
        attained = max((psnr[name] for name in found["attained"] if psnr.get(name) is not None), default=None)
        numbers = (psnr.get("unbiased_bound"), psnr.get("bayesian_bound"), attained, psnr.get("prior"))
        rows.append((found["layer"], found["sigma"], *numbers, found["gap_db"], found["bits_per_pixel_estimate"]))
    header = ("layer", "sigma", "unbiased", "any attacker", "ours", "prior", "gap", "bits")
    notes = list(dict.fromkeys(f"{found['layer']}: {note}" for found in documents for note in found["notes"]))
    assumed = [f"assumed of {line}" for line in documents[0]["assumptions"]]
    return "\n".join([format_table(header, rows), LEGEND, *assumed, *notes])
