"""The page: one HTML file that holds its pictures, its style and its script, and asks for nothing else."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from unconv.errors import UnconvError
from unconv.io import replacing
from unconv.reporting import text as words
from unconv.reporting.audit import audit_table, leakage_table
from unconv.reporting.data import METRICS, Record, Report, Series, printable, read_report, start_at
from unconv.reporting.figures import draw_figures
from unconv.reporting.images import EDGE, EmbeddedImages, data_uri, embed_images, encode, load
from unconv.reporting.style import COLOURS
from unconv.reporting.text import number, typical

EXPECTED_IMAGES = 2  # of which the map of expected errors is shown
LONGEST = 200  # characters of a setting
MOST_BYTES, SPARE = 10_000_000, 100_000  # of the whole page, and of what pictures leave free in it
KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".csv": "text/csv"}
DASHES = {"gates": 0, "switches": 1, "none": 2}
Cell = tuple[float | None, list[str]]  # what it sorts by, and its lines


def write_report(
    path: Path,
    document: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write ``figures/`` and ``report.html`` of a run directory; equal arguments and pictures give equal bytes.

    The document may be partial: layers may lack inversions, blocks their theory. Pictures are read from the directory.
    """
    report = read_report(path, document, rows, config, environment)
    return write_page(path, report, draw_figures(report, path))


def write_page(run: Path, report: Report, figures: Mapping[str, Path], most: int = MOST_BYTES) -> Path:
    """Write ``report.html`` alone, with figures that have been drawn, of so many bytes at most."""
    paths = [
        [p.original, *(row[name] for row in p.rows.values() for name in ("picture", "error_map") if row.get(name))]
        for p in report.pictures
    ]
    directions = _directions(report, run)
    bare = len(_render(report, EmbeddedImages(images=len(paths)), directions, figures).encode())
    pictures = embed_images(run, paths, most - bare - SPARE)
    page = run / "report.html"
    with replacing(page) as temporary:
        temporary.write_text(_render(report, pictures, directions, figures), encoding="utf-8", newline="\n")
    return page


def _render(
    report: Report, pictures: EmbeddedImages, directions: list[tuple[str, str, str]], figures: Mapping[str, Path]
) -> str:
    def read(name: str) -> str:
        return (files("unconv.reporting") / name).read_text(encoding="utf-8")

    css = read("vendored/uPlot.min.css") + read("page.css")
    js = f"/*\n{read('vendored/uPlot.LICENSE')}\n*/\n{read('vendored/uPlot.iife.min.js')}\n{read('page.js')}"
    loader = jinja2.FunctionLoader(read)
    jinja = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    jinja.filters["number"] = number
    start, sheet = start_at(report), _sheet(report, pictures)
    skipped = [("module", s["module"], s["reason"]) for s in report.document.get("skipped_modules") or []]
    skipped += [("image", s["file"], s["reason"]) for s in report.document.get("skipped_images") or []]
    return jinja.get_template("template.html.j2").render(
        report=report,
        words=words,
        policy=_policy(css, js),
        css=css,
        js=js,
        payload=_json(_payload(report, sheet, start)),
        tables=_tables(report),
        expected=_expected(report, pictures),
        attacks=audit_table(report),
        leakage=leakage_table(report),
        numbers=encode(_numbers(report).encode(), KINDS[".csv"]),
        theory=_theory(report),
        directions=directions,
        columns=sorted({
            i for image in sheet for i, cells in image["cells"].items() if any(c["uri"] for c in cells.values())
        }),
        series=list(report.series),
        start=start[0] if start else None,
        sheet=sheet,
        pictures=pictures,
        edge=EDGE,
        unread=printable(sorted(pictures.unread.items())),
        figures={
            name: {s: encode(svg.with_suffix(s).read_bytes(), kind) for s, kind in KINDS.items()}
            for name, svg in figures.items()
        },
        skipped=skipped,
        settings={"Settings": _settings(report.config), "Environment": _settings(report.environment)},
    )


def _sheet(report: Report, pictures: EmbeddedImages) -> list[dict[str, Any]]:
    """Return the images shown: name, original, and cells by place of the layer and of the series."""
    sheet, series = [], list(report.series)
    for picture in report.pictures[: pictures.images]:
        cells: dict[int, dict[int, dict[str, Any]]] = {}
        for (i, key), row in picture.rows.items():
            if key in report.series:
                about = {"uri": pictures.uris.get(row["picture"]), **{metric: row[metric] for metric in METRICS}}
                cells.setdefault(i, {})[series.index(key)] = about
        sheet.append({"name": picture.file, "uri": pictures.uris.get(picture.original), "cells": cells})
    return sheet


def _payload(report: Report, sheet: Sequence[Mapping[str, Any]], start: tuple[Series, int] | None) -> dict[str, Any]:
    """Return what the script draws from; the pictures themselves stay in the document."""
    series = list(report.series)
    methods = list(dict.fromkeys(s.method for s in series))
    shown = ("images", "failed", "spread", *METRICS)
    return {
        "layers": [{"name": name, "facts": _facts(layer)} for name, layer in zip(report.names, report.layers)],
        "series": [
            {
                "key": [s.recover, s.code, s.side_info, s.method],
                "name": words.series_name(s),
                "colour": methods.index(s.method) % len(COLOURS),
                "dash": DASHES.get(s.side_info, 2),
            }
            for s in series
        ],
        "choices": [words.RECOVERED, words.CODES, words.SIDES, words.METHODS],
        "spread": words.spread_name(report),
        "metrics": words.METRIC_NAMES,
        "baseline": report.baseline,
        "points": [
            {"series": k, "layer": i, "state": words.state(record)} | {name: record[name] for name in shown}
            for k, s in enumerate(series)
            for i, record in report.series[s].items()
        ],
        "images": [
            {
                "name": image["name"],
                "values": [
                    {"series": k, "layer": i, **{metric: cell[metric] for metric in METRICS}}
                    for i, cells in image["cells"].items()
                    for k, cell in cells.items()
                ],
            }
            for image in sheet
        ],
        "start": {"series": series.index(start[0]), "layer": start[1]} if start else {"series": 0, "layer": 0},
    }


def _tables(report: Report) -> list[dict[str, Any]]:
    """Return a table for every kind of error that compares, at least one of the layers alone."""
    tables = []
    for group in dict.fromkeys(series.group for series in report.series) or [None]:
        members = [series for series in report.series if series.group == group]
        notes: list[str] = []
        cells = [[_error_cell(report.series[s].get(i), notes) for s in members] for i in range(len(report.layers))]
        name = f"Errors: {words.group_name(group)}" if group else "Layers"
        tables.append({"name": name, "heads": list(map(words.series_name, members)), "cells": cells, "notes": notes})
    return tables


def _error_cell(record: Record | None, notes: list[str]) -> Cell:
    """Return a mean with all that belongs to it; remarks are gathered in ``notes``, and numbered."""
    if record is None:
        return None, []
    lines = [number(record["relative_error"])]
    if note := record["note"]:
        notes += [note] if note not in notes else []
        lines[0] += f" [{notes.index(note) + 1}]"
    if ends := record["spread"].get("relative_error"):
        lines.append(" to ".join(map(number, ends)))
    if record["psnr"] is not None:
        lines.append(f"{number(record['psnr'])} dB, SSIM {number(record['ssim'])}")
    if record.get("same_class") is not None:
        lines.append(f"same class {100 * record['same_class']:.0f} %")
    if record.get("lpips") is not None:
        lines.append(f"LPIPS {number(record['lpips'])}")
    if record["seconds"] is not None:
        lines.append(f"{number(record['seconds'])} s")
    lines += [state] if (state := words.state(record)) else []
    if record["failed"]:
        lines.append(f"{record['failed']} of {record['images'] + record['failed']} failed")
    return record["relative_error"], lines


def _numbers(report: Report) -> str:
    """Return all means by layer and method as CSV, as the report's document has them."""
    records = [{"layer": layer["layer"], **r} for layer in report.layers for r in layer.get("inversion") or []]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for record in records for name in record)))
    table.writeheader()
    table.writerows(records)
    return text.getvalue()


def _expected(report: Report, pictures: EmbeddedImages) -> list[dict[str, Any]]:
    """Return, by layer, what errors the linear decoder expects and makes, and pictures of where it expects them."""
    found = []
    for i, name in enumerate(report.names):
        linear = next((r for r in report.layers[i].get("inversion") or [] if r["method"] == "linear"), {})
        if linear.get("expected_error") is None:
            continue
        shown = []
        for picture in report.pictures[: min(EXPECTED_IMAGES, pictures.images)]:
            rows = [row for (at, s), row in picture.rows.items() if at == i and s.method == "linear"]
            shown += [pictures.uris.get(rows[0].get(p) or "") for p in ("picture", "error_map")] if rows else []
        numbers = [linear["expected_error"], linear["relative_error"]]
        found.append({"layer": name, "numbers": numbers, "shown": [uri for uri in shown if uri]})
    return found


def _theory(report: Report) -> dict[str, Any]:
    """Return the conv blocks' theory: a sentence per measure that there is, and a row of cells per block."""
    measured = [
        name
        for name in ("sparsity", "coherence", "rip", "certificate")
        if any(b.get(name) for b in report.blocks.values())
    ]
    heads = {
        "sparsity": ["% non-zero, activation", "% non-zero, pooled"],
        "coherence": ["coherence, signed", "coherence, shifted"],
        "rip": ["RIP ratio", "RIP ratio, Gaussian", "typical"],
        "certificate": ["δₖ", "σ, own input", "σ, image", "null space"],
    }
    rows = {}
    for i, block in report.blocks.items():
        rip = {r["filters"]: r for r in block.get("rip") or [] if r["boundary"] == "full"}
        sparsity, coherence, certificate = (block.get(name) or {} for name in ("sparsity", "coherence", "certificate"))
        learned, random = (coherence.get(bank) or {} for bank in ("learned", "random"))
        cells = {
            "sparsity": [_cell(sparsity.get(name)) for name in ("activation", "pooled")],
            "coherence": [_cell(learned.get(n), f"Gaussian {number(random.get(n))}") for n in ("signed", "shifted")],
            "rip": [
                *(_quantiles(rip.get(filters)) for filters in ("normalised", "gaussian")),
                _typical((rip.get("normalised") or {}).get("typical")),
            ],
            "certificate": [
                _bounds(certificate.get("delta_k"), "k"),
                *(_bounds((certificate.get(of) or {}).get("sigma")) for of in ("input", "image")),
                _null_space(certificate.get("image") or {}),
            ],
        }
        about = f"{block['kind']}, {number(block['input_shape'])} → {number(block['code_shape'])}"
        rows[i] = block["name"], about, [cell for name in measured for cell in cells[name]]
    explained = {"rip": ("rip", "typical"), "certificate": ("certificate", "sigma", "null")}
    meanings = [words.THEORY[part] for name in measured for part in explained.get(name, (name,))]
    notes: dict[str, list[str]] = {}
    for block in report.blocks.values():
        for note in (block.get("certificate") or {}).get("notes") or []:
            notes.setdefault(note, []).append(block["name"])
    return {
        "meanings": meanings,
        "heads": [h for name in measured for h in heads[name]],
        "rows": rows,
        "notes": [f"{', '.join(names)}: {note}." for note, names in notes.items()],
    }


def _typical(found: Mapping[str, Any] | None) -> Cell:
    """Return how many random codes keep their norm within which share; see ``TypicalRatio``."""
    return (found["within"], [typical(found)]) if found else (None, [])


def _null_space(image: Mapping[str, Any]) -> Cell:
    least, left = "" if image.get("exact") else "at least ", image.get("undetermined")
    return (None, []) if left is None else (left, [f"{least}{number(left)}", f"of {number(image['unknowns'])}"])


def _cell(value: float | None, *more: str) -> Cell:
    return value, [] if value is None else [number(value), *more]


def _quantiles(record: Mapping[str, Any] | None) -> Cell:
    if not record:
        return None, []
    values = " ".join(number(record[name]) for name in ("p01", "p50", "p99"))
    return record["p50"], [values, f"k = {number(record['k'])}"]


def _bounds(bounds: Mapping[str, Any] | None, more: str = "") -> Cell:
    if not bounds:
        return None, []
    low, high = bounds["lower"], bounds["upper"]
    text = f"{number(low)} to {number(high)}" if low else f"at most {number(high)}"
    return high, [text, *([f"{more} = {number(bounds[more])}"] if more else [])]


def _directions(report: Report, run: Path) -> list[tuple[str, str, str]]:
    """Return, by layer, the picture of what its code shows least of, and how far that moves the code."""
    found = []
    for i, block in report.blocks.items():
        direction = (block.get("certificate") or {}).get("direction")
        with contextlib.suppress(UnconvError):
            if direction and direction["picture"]:
                moved = f"{number(direction['gain'])} (most visible: {number(direction['largest'])})"
                said = "in the null space" if direction["undetermined"] else moved
                found.append((report.names[i], data_uri(load(run, direction["picture"], EDGE)), said))
    return found


def _facts(layer: Mapping[str, Any]) -> list[list[str]]:
    """Return a layer in a few pairs of term and value, shown while it is selected."""
    linear = layer.get("linear") or {}
    explained = linear.get("explained_variance") or {}
    facts = [["kind", layer["kind"]], ["shape", number(layer["shape"])]]
    for name, title in (("luminance_total", "luminance"), ("colour_total", "colour")):
        if (share := explained.get(name)) is not None:
            # an estimate that is farther from held-out images than their mean explains nothing
            text = f"{number(100 * share)} %" if share > 0 else "0 % (no better than the mean)"
            facts.append([f"{title} explained linearly", text])
    if layer.get("block"):
        facts.append(["conv block", layer["block"]["name"]])
    return facts


def _settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as pairs of texts, one level of names flattened."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and not prefix:
            pairs += _settings(value, f"{key}, ")
        else:
            plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            plain = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}… (config.json has all)"
            pairs.append((prefix + key, "none" if value is None else plain))
    return pairs


def _json(payload: Any) -> str:
    """Return JSON that cannot end its script element, whatever names are in it."""
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(css: str, js: str) -> str:
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
