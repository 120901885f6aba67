"""Fill the tables of information.md from the committed results: ``python docs/fill_information.py``.

``FILE`` is under ``experiments/results``, without ``.json``. ``<!-- block: FILE CHOICE -->``, of
``experiments/decoding.py``, stands before a table from the code of each conv block to the block's own input; ``CHOICE``
may name the conv blocks, ``rows``, that it shows. ``<!-- errors: FILE CHOICE -->`` and
``<!-- quality: FILE CHOICE -->``, of ``experiments/report_summary.py``, are a report's relative errors by layer, and
PSNR, SSIM and same classes of two reports, ``FILE-10min`` and ``FILE-hour``; ``CHOICE`` may give ``kinds`` of side
information and, of the latter, ``names`` of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tables import RESULTS, fill_page, markdown, read

SAID = {"none": "features alone", "switches": "switches", "gates": "gates"}
KINDS = tuple(SAID)
METHODS = {
    "iht": "one-step",
    "min-norm": "minimum norm",
    "convex": "convex",
    "convex, gaussian": "convex, gaussian",
}


def made(kind: str, name: str, **choice: Any) -> str:
    """One of the tables."""
    return {"block": block_inputs, "errors": report_errors, "quality": report_quality}[kind](name, **choice)


def block_inputs(name: str, rows: Iterable[str] = ()) -> str:
    """Equations per unknown of each conv block, and the relative error of each decoder of its input."""
    result = read(RESULTS / f"{name}.json")
    found = {(row["block"], row["method"]): row["relative_error"] for row in result["rows"]}
    shown = {method: name for method, name in METHODS.items() if any(method == m for _, m in found)}
    lines = []
    for block in rows or result["blocks"]:
        said = result["blocks"][block]
        errors = (f"{found[block, method]:.3g}" for method in shown)
        lines.append((block, f"{said['equations'] / said['unknowns']:.2f}", *errors))
    return markdown(("conv block", "equations per unknown", *shown.values()), lines)


def report_errors(name: str, kinds: Iterable[str] = KINDS) -> str:
    """Mean relative errors of a report by layer; "linear" where refinement gains nothing."""
    layers, found = report_rows(name)
    lines = []
    for layer in layers:
        linear = found[layer, "linear"]
        errors = (
            _refined(found.get((layer, kind)), linear, lambda row: f"{row['relative_error']:.3g}") for kind in kinds
        )
        lines.append((f"`{layer}`", f"{linear['relative_error']:.3g}", *errors))
    return markdown(("layer", "linear", *(SAID[kind] for kind in kinds)), lines)


def report_quality(name: str, names: Mapping[str, str] | None = None, kinds: Iterable[str] = KINDS) -> str:
    """PSNR, SSIM and, of a classifier, in how many images the class is the same, after ten minutes and an hour."""
    (layers, short), (_, long) = (report_rows(f"{name}-{budget}") for budget in ("10min", "hour"))
    header = ["layer", "linear"]
    for kind in kinds:
        header += [f"{SAID[kind]}, 10 min", "1 h"]
    lines = []
    for layer in layers:
        cells = [(names or {}).get(layer, f"`{layer}`"), _quality(short[layer, "linear"])]
        for kind in kinds:
            cells += [_refined(found.get((layer, kind)), short[layer, "linear"], _quality) for found in (short, long)]
        lines.append(cells)
    return markdown(header, lines)


def report_rows(name: str) -> tuple[list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Layers of a report, and its rows by layer and kind of side information, or "linear"."""
    report = read(RESULTS / f"{name}.json")
    rows = report["rows"]
    kinds = ["linear" if row["method"] == "linear" else row["side_info"] for row in rows]
    found = {(row["layer"], kind): row for row, kind in zip(rows, kinds, strict=True)}
    return report["settings"]["layers"], found


def _refined(row: dict[str, Any] | None, linear: dict[str, Any], show: Callable[[dict[str, Any]], str]) -> str:
    if row is None:
        return ""
    return "linear" if row["relative_error"] == linear["relative_error"] else show(row)


def _quality(row: dict[str, Any]) -> str:
    same = "" if row["same_class"] is None else f" ({round(row['same_class'] * row['images'])})"
    return f"{row['psnr']:.1f} dB, {row['ssim']:.3f}{same}"


if __name__ == "__main__":
    fill_page("information.md", made)
