"""``unconv report``: the main job, layers measured and inverted, as a page."""

from __future__ import annotations

from typing import Any

from unconv.api_report import report
from unconv.commands import format_table
from unconv.options import Report, command_line

SHOWN = 3  # modules left out that are named in the terminal


def run(options: Report) -> tuple[dict[str, Any], str]:
    """Measure, invert, and write the page; return the JSON document and its text."""
    result = report(options.model, **options.keywords(), command=command_line("report", options))
    return result.document, _text(result.document, result.page)


def _unfinished(best: dict[str, Any]) -> str:
    left = best["images"] - best["converged"]
    return f", {left} of {best['images']} not converged" if left else ""


def _text(document: dict[str, Any], page: Any) -> str:
    rows = []
    for layer in document["layers"]:
        sparsity, linear = (layer["block"] or {}).get("sparsity") or {}, layer["linear"] or {}
        best = min(
            (i for i in layer["inversion"] if i["recover"] == "image" and i["relative_error"] is not None),
            key=lambda i: i["relative_error"],
            default={},
        )
        rows.append((
            layer["layer"],
            layer["shape"],
            sparsity.get("pooled"),
            linear.get("relative_error"),
            best.get("relative_error"),
            best.get("psnr"),
            "-" if not best else f"{best['method']}, {best['side_info']}" + _unfinished(best),
        ))
    header = ("layer", "shape", "% non-zero", "linear\nerror", "best\nerror", "psnr", "by")
    skipped = document["skipped_modules"]
    lines = [format_table(header, rows), "errors are ||x^ - x|| / ||x||, means over the images"]
    lines += [f"skipped {module['module']}: {module['reason']}" for module in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"and {len(skipped) - SHOWN} more modules left out; --json names them")
    if document["skipped_images"]:
        lines.append(f"{len(document['skipped_images'])} images skipped; the page names them")
    return "\n".join([*lines, f"page: {page}"])
