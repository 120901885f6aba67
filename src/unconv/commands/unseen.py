"""``unconv unseen``: what no attacker can do with a layer's noisy features, beside what ours does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unconv.api_unseen import leakage, metamers, uniqueness
from unconv.commands import format_table
from unconv.errors import UsageError
from unconv.images import save_image
from unconv.options import Unseen
from unconv.unseen.metamers import Metamer

OF_UNIQUENESS = "distances: Euclidean norms over all numbers of the image, pixels in [0, 1]; up to rounding of float64"
OF_LEAKAGE = ("passes", "probes", "reference_images")

LEGEND = """\
PSNR in dB of the mean squared error over images, pixels in [0, 1]; a single image may come out above. unbiased, any
attacker: ceilings; no unbiased attacker, and no attacker at all on average over the prior (the Bayesian bound), gets
more. A low ceiling is a defence, a high one promises nothing. ours: what our attack got in its passes; gap: any
attacker less ours. prior: the mean image, the answer of one who sees nothing. bits: information per pixel, an
estimate."""


def run(options: Unseen) -> tuple[dict[str, Any], str]:
    """Bound the leakage of layers, look around an image, seek metamers; return the JSON document and its text."""
    if not options.layer:
        raise UsageError(f"--layer is missing; see unconv layers {options.model}")
    arguments = options.keywords()
    search = arguments.pop("metamers", None)
    unique = arguments.pop("unique", False)
    out: Path | None = arguments.pop("out", None)
    noise = {"sigma", "relative_sigma", "bits"} & set(arguments)
    documents, texts = {}, []
    if noise or (search is None and not unique):
        documents["layers"] = [leakage(options.model, layer, **arguments).document() for layer in options.layer]
        texts.append(_text(documents["layers"]))
    kept = {name: value for name, value in arguments.items() if name not in {*noise, *OF_LEAKAGE}}
    images = kept.pop("images", None)
    if unique:
        shown = [uniqueness(options.model, layer, images, **kept) for layer in options.layer]
        documents["uniqueness"] = [one.document() for one in shown]
        texts += [str(one) for one in shown] + [OF_UNIQUENESS]
    if search is not None:
        found = [metamers(options.model, layer, images, passes=search, **kept) for layer in options.layer]
        documents["metamers"] = [one.document() for one in found]
        texts += map(_sentence, found)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for one in found:
                save_image(one.image, out / f"{one.layer}-image.png")
                save_image(one.metamer, out / f"{one.layer}-metamer.png")
    return documents, "\n".join(texts)


def _sentence(found: Metamer) -> str:
    return (
        f"{found.layer}: an image at {found.psnr:.2f} dB from the first one has features that differ by "
        f"{found.relative_difference:.2g} of their norm, after {found.passes} passes"
        + (f"; {found.note}" if found.note else "")
    )


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
