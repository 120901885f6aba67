"""``unconv audit``: what attackers get of images out of the features of split points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unconv.api_report import audit
from unconv.commands import format_table
from unconv.errors import UsageError
from unconv.models import LoadedModel, load_model
from unconv.options import Audit, command_line

MEANS = ("PSNR", "SSIM", "95 % interval", "worst", "same\nclass", "LPIPS")
HEADER = ("layer", "attacker", "noise", "images", *MEANS, "status")


def run(options: Audit) -> tuple[dict[str, Any], str]:
    """Attack, and write the page; return the JSON document and its text."""
    arguments = options.keywords() | {"judge": _judge(options.judge), "command": command_line("audit", options)}
    result = audit(options.model, **arguments)
    return result.document, _text(result.document, result.page)


def _judge(words: tuple[str, ...]) -> LoadedModel | None:
    if len(words) > 2:
        raise UsageError(f"--judge takes a model and its weights, not {' '.join(words)}; put MODEL before --judge")
    model, weights = (*words, None, None)[:2]
    return None if model is None else load_model(model, weights=weights, download=weights is not None)


def _text(document: Mapping[str, Any], page: Any) -> str:
    found = document["audit"]
    rows = []
    for entry in found["table"]:
        psnr, ssim, lpips = (entry[name] or {} for name in ("psnr", "ssim", "lpips"))
        ends = None if ssim.get("low") is None else f"{ssim['low']:.3f} to {ssim['high']:.3f}"
        rows.append((
            *(entry[name] for name in ("layer", "attacker", "noise", "images")),
            *(psnr.get("mean"), ssim.get("mean"), ends, ssim.get("worst"), entry["same_class"], lpips.get("mean")),
            entry["status"],
        ))
    flat = found["mean_colour"]
    lines = [
        format_table(HEADER, rows),
        f"interval: {found['interval']}, and worst: the most exposed image, of SSIM; "
        "same class: share of images whose top-1 class is kept; the mean colour alone: "
        f"SSIM {flat['ssim'] or 0:.3f}, PSNR {flat['psnr'] or 0:.1f} dB",
    ]
    for key, title in (("can_conclude", "What can be concluded"), ("cannot_conclude", "What cannot")):
        lines += ["", f"{title}:", *(f"  {sentence}" for sentence in found[key])]
    return "\n".join([*lines, "", f"page: {page}"])
