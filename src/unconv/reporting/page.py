"""The page: one HTML file that holds its pictures, its style and its script, and asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from unconv.io import replacing
from unconv.measure.typical import worst_in_words
from unconv.reporting import text as words
from unconv.reporting.audit import audit_table
from unconv.reporting.data import METRICS, MORE, Report, Series, finite, printable, read_report, start_at
from unconv.reporting.figures import draw_figures
from unconv.reporting.images import EmbeddedImages, embed_images, encode
from unconv.reporting.text import number

COLOURS = 7
EXPECTED_IMAGES = 2  # of which the map of expected errors is shown
DASHES = {"gates": 0, "switches": 1, "none": 2}
Cell = tuple[float | None, list[str]]  # what it sorts by, and its lines


@dataclass(frozen=True)
class PageLimits:
    """How large a page gets.

    Attributes:
        page: Bytes of the whole page.
        spare: Bytes kept free at least for what is no picture.
        patterns: Bytes of the pictures of directions that codes show least.
    """

    page: int = 10_000_000
    spare: int = 400_000
    patterns: int = 1_000_000


def write_report(
    path: Path,
    document: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write ``figures/`` and ``report.html`` of a run directory; equal arguments and pictures give equal bytes.

    Args:
        path: The run directory; pictures are read from there.
        document: The report's JSON document, as far as there is one: layers may lack inversions, blocks their theory.
        rows: Results, one per image and task.
        config: Settings of the run.
        environment: Versions and machine.

    Returns:
        Path of the page.
    """
    report = read_report(path, document, rows, config, environment)
    return write_page(path, report, draw_figures(report, path))


def write_page(run: Path, report: Report, figures: Mapping[str, Path], limits: PageLimits | None = None) -> Path:
    """Write ``report.html`` alone, with figures that have been drawn."""
    limits = limits or PageLimits()
    paths = [
        [p.original, *(row[name] for row in p.rows.values() for name in ("picture", "error_map") if row.get(name))]
        for p in report.pictures
    ]
    patterns = [pattern for block in report.blocks.values() if (pattern := _pattern(block))]
    unseen = embed_images(run, [patterns] if patterns else [], limits.patterns)
    bare = len(_render(report, EmbeddedImages(images=len(paths)), unseen, figures).encode())
    pictures = embed_images(run, paths, limits.page - max(limits.spare, bare + limits.spare // 4))
    page = run / "report.html"
    with replacing(page) as temporary:
        temporary.write_text(_render(report, pictures, unseen, figures), encoding="utf-8", newline="\n")
    return page


def _render(report: Report, pictures: EmbeddedImages, unseen: EmbeddedImages, figures: Mapping[str, Path]) -> str:
    here = files("unconv.reporting")

    def read(name: str) -> str:
        return (here / name).read_text(encoding="utf-8")

    css = read("vendored/uPlot.min.css") + read("page.css")
    js = f"/*\n{read('vendored/uPlot.LICENSE')}\n*/\n{read('vendored/uPlot.iife.min.js')}\n{read('page.js')}"
    loader = jinja2.FunctionLoader(read)
    jinja = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    jinja.filters["number"] = number
    series = list(report.series)
    start = start_at(report)
    sheet = _sheet(report, pictures, series)
    skipped = [("module", s["module"], s["reason"]) for s in report.document.get("skipped_modules") or []]
    skipped += [("image", s["file"], s["reason"]) for s in report.document.get("skipped_images") or []]
    return jinja.get_template("template.html.j2").render(
        report=report,
        words=words,
        policy=_policy(css, js),
        css=css,
        js=js,
        answer=words.answer(report),
        payload=_json(_payload(report, series, sheet, start)),
        tables=_tables(report),
        expected=_expected(report, pictures),
        audit=report.document.get("audit"),
        attacks=audit_table(report),
        theory=_theory(report),
        directions=[(report.names[i], *_direction(block, unseen)) for i, block in report.blocks.items()],
        columns=sorted({
            i for image in sheet for i, cells in image["cells"].items() if any(c["uri"] for c in cells.values())
        }),
        series=series,
        start=start[0] if start else None,
        sheet=sheet,
        pictures=pictures,
        unread=printable(sorted(pictures.unread.items())),
        figures={name: {s: encode(_file(svg, s), k) for s, k in KINDS.items()} for name, svg in figures.items()},
        skipped=skipped,
        terms=words.definitions(report),
        settings={"Settings": _settings(report.config), "Environment": _settings(report.environment)},
    )


KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".csv": "text/csv"}


def _file(svg: Path, suffix: str) -> bytes:
    file = svg.with_suffix(suffix)
    return file.read_bytes() if file.is_file() else b""


def _sheet(report: Report, pictures: EmbeddedImages, series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return the images shown: name, original, and reconstructions by place of the layer and of the series."""
    sheet = []
    for picture in report.pictures[: pictures.images]:
        cells: dict[int, dict[int, dict[str, Any]]] = {}
        for (i, key), row in picture.rows.items():
            if key in report.series:
                values = [finite(row.get(metric)) for metric in METRICS]
                cells.setdefault(i, {})[series.index(key)] = {
                    "uri": pictures.uris.get(row["picture"]),
                    "values": values,
                }
        sheet.append({"name": picture.file, "uri": pictures.uris.get(picture.original), "cells": cells})
    return sheet


def _payload(
    report: Report, series: Sequence[Series], sheet: Sequence[Mapping[str, Any]], start: tuple[Series, int] | None
) -> dict[str, Any]:
    """Return what the script draws from; the pictures themselves stay in the document."""
    methods = list(dict.fromkeys(s.method for s in series))
    return {
        "model": report.model,
        "layers": [{"name": name, "facts": _facts(layer)} for name, layer in zip(report.names, report.layers)],
        "series": [
            {
                "key": [s.recover, s.code, s.side_info, s.method],
                "name": words.series_name(s),
                "colour": methods.index(s.method) % COLOURS,
                "dash": DASHES.get(s.side_info, 2),
            }
            for s in series
        ],
        "choices": [words.RECOVERED, words.CODES, words.SIDES, words.METHODS],
        "spread": words.spread_name(report),
        "metrics": [words.METRIC_NAMES[metric] for metric in METRICS],
        "baseline": [report.baseline.get(metric) for metric in METRICS],
        "points": [
            [
                k,
                i,
                [p.values[m] for m in METRICS],
                [p.spread.get(m) for m in METRICS],
                p.images,
                p.failed,
                words.state(p),
            ]
            for k, s in enumerate(series)
            for i, p in report.series[s].items()
        ],
        "images": [
            {
                "name": image["name"],
                "values": [[k, i, *cell["values"]] for i, cells in image["cells"].items() for k, cell in cells.items()],
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
        points = [[report.series[s].get(i) for s in members] for i in range(len(report.layers))]
        notes = list(dict.fromkeys(p.note for line in points for p in line if p and p.note))
        cells: list[list[Cell]] = []
        for line in points:
            cells.append([])
            for p in line:
                lines = [] if p is None else [number(p.values["relative_error"])]
                if p is not None and p.note:
                    lines[0] += f" [{notes.index(p.note) + 1}]"
                if p is not None and "relative_error" in p.spread:
                    lines.append(" to ".join(map(number, p.spread["relative_error"])))
                if p is not None and p.values["psnr"] is not None:
                    lines.append(f"{number(p.values['psnr'])} dB, SSIM {number(p.values['ssim'])}")
                if p is not None:
                    same, lpips = (p.values[name] for name in MORE)
                    lines += [f"same class {100 * same:.0f} %"] if same is not None else []
                    lines += [f"LPIPS {number(lpips)}"] if lpips is not None else []
                    lines += [f"{number(p.seconds)} s"] if p.seconds is not None else []
                    lines += [s for s in (words.state(p),) if s]
                    lines += [f"{p.failed} of {p.images + p.failed} failed"] if p.failed else []
                cells[-1].append((p and p.values["relative_error"], lines))
        name = f"Errors: {words.group_name(group)}" if group else "Layers"
        tables.append({"name": name, "heads": list(map(words.series_name, members)), "cells": cells, "notes": notes})
    return tables


def _expected(report: Report, pictures: EmbeddedImages) -> list[dict[str, Any]]:
    """Return, by layer, what errors the linear decoder expects and makes, and pictures of where it expects them."""
    found = []
    for i, name in enumerate(report.names):
        linear = next((r for r in report.layers[i].get("inversion") or [] if r["method"] == "linear"), {})
        if finite(linear.get("expected_error")) is None:
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
        "rip": ["RIP ratio", "RIP ratio, Gaussian"],
        "certificate": ["δₖ", "σ, own input", "σ, image"],
    }
    rows = {}
    for i, block in report.blocks.items():
        rip = {r["filters"]: r for r in block.get("rip") or [] if r["boundary"] == "full"}
        sparsity, coherence, certificate = (block.get(name) or {} for name in ("sparsity", "coherence", "certificate"))
        learned, random = (coherence.get(bank) or {} for bank in ("learned", "random"))
        cells = {
            "sparsity": [_cell(sparsity.get(name)) for name in ("activation", "pooled")],
            "coherence": [_cell(learned.get(n), f"Gaussian {number(random.get(n))}") for n in ("signed", "shifted")],
            "rip": [_quantiles(rip.get(filters)) for filters in ("normalised", "gaussian")],
            "certificate": [
                _bounds(certificate.get("delta_k"), "k"),
                *(_bounds((certificate.get(of) or {}).get("sigma")) for of in ("input", "image")),
            ],
        }
        about = f"{block['kind']}, {number(block['input_shape'])} → {number(block['code_shape'])}"
        rows[i] = block["name"], about, [cell for name in measured for cell in cells[name]]
    meanings = [words.THEORY[name] for name in measured] + (
        [words.THEORY["sigma"]] if "certificate" in measured else []
    )
    typical = {block["name"]: _typical(block) for block in report.blocks.values()}
    typical = {name: sentence for name, sentence in typical.items() if sentence}
    return {
        "typical": typical,
        "meanings": meanings,
        "heads": [h for name in measured for h in heads[name]],
        "rows": rows,
    }


def _typical(block: Mapping[str, Any]) -> str:
    """Return what most random codes of a block do at unit filters, and what the worst code can do, in one sentence."""
    rip = next((r for r in block.get("rip") or [] if (r["filters"], r["boundary"]) == ("normalised", "full")), {})
    found, delta = rip.get("typical"), (block.get("certificate") or {}).get("delta_k")
    worst = f"; {worst_in_words(delta['lower'], delta['upper'])}" if delta else ""
    return f"{found['text']}{worst}." if found else ""


def _cell(value: Any, *more: str) -> Cell:
    return (finite(value), [number(value), *more]) if finite(value) is not None else (None, [])


def _quantiles(record: Mapping[str, Any] | None) -> Cell:
    values = [finite((record or {}).get(name)) for name in ("p01", "p50", "p99")]
    return (
        (values[1], [" ".join(map(number, values)), f"k = {number((record or {}).get('k'))}"])
        if all(values)
        else (None, [])
    )


def _bounds(bounds: Mapping[str, Any] | None, more: str = "") -> Cell:
    low, high = (finite((bounds or {}).get(end)) for end in ("lower", "upper"))
    if bounds is None or high is None:
        return None, []
    text = f"{number(low)} to {number(high)}" if low else f"at most {number(high)}"
    return high, [text, *([f"{more} = {number(bounds.get(more))}"] if more else [])]


def _pattern(block: Mapping[str, Any]) -> str | None:
    return ((block.get("certificate") or {}).get("direction") or {}).get("picture")


def _direction(block: Mapping[str, Any], unseen: EmbeddedImages) -> tuple[str | None, str, list[str]]:
    """Return the picture of what a block's code shows least of, in words, and the certificate's remarks."""
    certificate = block.get("certificate") or {}
    direction, image = certificate.get("direction") or {}, certificate.get("image") or {}
    sentence = ""
    if image.get("undetermined"):
        least = "" if image.get("exact") else "at least "
        of = f"{number(image['undetermined'])} of {number(image['unknowns'])} dimensions of the image"
        sentence = f"The null space has {least}{of}, even with switches and gates given."
    elif direction.get("gain") is not None:
        gain, largest = number(direction["gain"]), number(direction.get("largest"))
        sentence = (
            f"The change pictured moves the code by {gain} per unit of length, the most visible one by {largest}."
        )
    return unseen.uris.get(_pattern(block) or ""), sentence, certificate.get("notes") or []


def _facts(layer: Mapping[str, Any]) -> list[list[str]]:
    """Return a layer in a few pairs of term and value, shown while it is selected."""
    linear = layer.get("linear") or {}
    explained = linear.get("explained_variance") or {}
    facts = [["kind", layer.get("kind")], ["shape", number(layer.get("shape"))]]
    for name, title in (("luminance_total", "luminance"), ("colour_total", "colour")):
        if (share := finite(explained.get(name))) is not None:
            # an estimate that is farther from held-out images than their mean explains nothing
            text = f"{number(100 * share)} %" if share > 0 else "0 % (no better than the mean)"
            facts.append([f"{title} explained linearly", text])
    if layer.get("block"):
        facts.append(["conv block", layer["block"]["name"]])
    return [[term, text] for term, text in facts if text]


def _settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as pairs of texts, one level of names flattened."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and not prefix:
            pairs += _settings(value, f"{key}, ")
        else:
            plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
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
