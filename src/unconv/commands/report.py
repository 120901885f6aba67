"""``unconv report``: the main job, layers measured and inverted, as a page."""

from __future__ import annotations

import json
from typing import Any

from unconv.api_report import report
from unconv.commands import format_table
from unconv.options import Report, command_line
from unconv.reporting.data import read_report
from unconv.reporting.text import SIDES, answer, state
from unconv.results import ReportResult

SHOWN = 3  # modules left out that are named in the terminal


def run(options: Report) -> tuple[dict[str, Any], str]:
    """Measure, invert, and write the page; return the JSON document and its text."""
    result = report(options.model, **options.keywords(), command=command_line("report", options))
    return result.document, _text(result)


def _answer(result: ReportResult) -> list[str]:
    config, environment = (json.loads((result.run / f"{n}.json").read_text()) for n in ("config", "environment"))
    return answer(read_report(result.run, result.document, result.rows, config, environment))


def _text(result: ReportResult) -> str:
    names = ("linear", *SIDES.values())
    header = ["layer", "shape", *(f"{name}\nerror" for name in names), "status of\nfeatures alone"]
    rows = []
    for layer in result.layers:
        refined = {i["side_info"]: i for i in layer["inversion"] if i["recover"] == "image" and i["method"] != "linear"}
        errors = [refined[side]["relative_error"] if side in refined else None for side in SIDES]
        alone = state(refined["none"]) or "converged" if "none" in refined else None
        rows.append([layer["layer"], layer["shape"], (layer["linear"] or {}).get("relative_error"), *errors, alone])
    table = format_table(header, rows)
    lines = [*_answer(result), "", table, "errors are ||x^ - x|| / ||x||, means over the images"]
    skipped = result.skipped_modules
    lines += [f"skipped {module['module']}: {module['reason']}" for module in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"and {len(skipped) - SHOWN} more modules left out; --json names them")
    if images := len(result.skipped_images):
        lines.append(f"{images} image{'s' if images > 1 else ''} left out; the page says which, and why")
    return "\n".join([*lines, f"page: {result.page}"])
