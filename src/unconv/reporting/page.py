"""The page: one HTML file that holds its pictures, its style and its script, and asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from unconv.io import replacing
from unconv.reporting import text as words
from unconv.reporting.data import (
    METRICS,
    Point,
    ReportData,
    Series,
    curves,
    finite,
    image_count,
    main_series,
    printable,
    rows,
    short_names,
    worst_stage,
)
from unconv.reporting.images import Gallery, gallery

__all__ = ["ReportData", "write_page"]

PAGE_BYTES = 10_000_000
TEXT_BYTES = 400_000
PATTERN_BYTES = 1_000_000
MOST_IMAGES = 40
COLOURS = 7
DASHES = {"gates": 0, "switches": 1, "none": 2}
FILTERS = ("learned", "normalised", "gaussian")
BOUNDARIES = ("full", "cropped")
COHERENCES = ("signed", "absolute", "shifted")
QUANTILES = ("p01", "p50", "p99")
CERTIFIED = ("δₖ, attained to proven", "σ, own input", "σ, image")


def write_page(data: ReportData, run: Path) -> Path:
    """Write ``report.html`` into the run directory: a single file under 10 MB that opens from disk.

    Everything that comes from outside is escaped, and the page's content security policy allows its own style and
    script (by hash) and ``data:`` pictures, nothing else. Equal data and pictures give equal bytes.

    Args:
        data: What to show.
        run: The run directory; pictures are read from there, and ``figures/error-depth.svg``, where it is there,
            stands in for the plot in browsers without JavaScript.

    Returns:
        Path of the page.
    """
    shown = [picture for picture in data.pictures if picture.get("original")][:MOST_IMAGES]
    # the paths are used as they are; everything that is shown passes through printable()
    paths = [[p["original"], *(r["path"] for r in p["reconstructions"] if r.get("path"))] for p in shown]
    text = _render(data.printable(), Gallery({}, {}, len(shown), 0, 0), {}, shown, run)
    patterns = [path for stage in data.stages if (path := _pattern(stage))]
    unseen = gallery(run, [patterns] if patterns else [], PATTERN_BYTES)
    room = PAGE_BYTES - max(TEXT_BYTES, len(text.encode()) + TEXT_BYTES // 4) - sum(map(len, unseen.uris.values()))
    pictures = gallery(run, paths, room)
    page = run / "report.html"
    text = _render(data.printable(), pictures, unseen.uris, shown, run)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return page


def _render(
    data: ReportData,
    pictures: Gallery,
    patterns: Mapping[str, str],
    sources: Sequence[Mapping[str, Any]],
    run: Path,
) -> str:
    lines = curves(data)
    start = main_series(lines)
    here = files("unconv.report")
    css, js = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (here / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": words.number, "shape": words.shape}
    names = [stage["stage"] for stage in data.stages]
    series = list(lines)
    sheet = _sheet(data, pictures, sources, series)
    return environment.get_template("template.html.j2").render(
        data=data,
        words=words,
        policy=_policy(css, js),
        css=css,
        js=js,
        summary=words.summary(data),
        payload=_json(_payload(data, lines, sheet, start)),
        stages=[_stage_row(stage) for stage in data.stages],
        groups=_groups(lines),
        coherences=COHERENCES if any(stage.get("coherence") for stage in data.stages) else (),
        rips=_rip_columns(data),
        certificates=[_certificate_row(stage, patterns) for stage in data.stages]
        if any(stage.get("certificate") for stage in data.stages)
        else [],
        certified=max((c["images"] for stage in data.stages for c in _maps(stage) if c), default=0),
        names=names,
        columns=sorted({i for image in sheet for i, cells in image["cells"].items() if _pictured(cells)}),
        series=series,
        start=start,
        sheet=sheet,
        has_pictures=bool(pictures.uris),
        edge=pictures.edge,
        partial=pictures.partial,
        unread=printable(sorted(pictures.unread.items())),
        image_count=image_count(data),
        spread=words.spread_words(data),
        terms=words.definitions(data, series),
        config=_settings(data.config),
        environment=_settings(data.environment),
        plot=_static_plot(run),
    )


def _sheet(
    data: ReportData, pictures: Gallery, sources: Sequence[Mapping[str, Any]], series: Sequence[Series]
) -> list[dict[str, Any]]:
    # per image shown: its name, its original, and its reconstructions by stage and series
    index = {stage["stage"]: i for i, stage in enumerate(data.stages)}
    result = []
    shown = [picture for picture in data.pictures if picture.get("original")]
    for source, picture in zip(sources[: pictures.images], shown):
        cells: dict[int, dict[int, dict[str, Any]]] = {}
        for raw, record in zip(source["reconstructions"], picture["reconstructions"]):
            if record["stage"] in index:
                cells.setdefault(index[record["stage"]], {})[series.index(Series.of(record))] = {
                    "uri": pictures.uris.get(raw.get("path") or ""),
                    "values": [finite(record.get(metric)) for metric in METRICS],
                }
        result.append({"name": picture["file"], "uri": pictures.uris.get(source["original"]), "cells": cells})
    return result


def _payload(
    data: ReportData,
    lines: Mapping[Series, Mapping[int, Point]],
    sheet: Sequence[Mapping[str, Any]],
    start: Series | None,
) -> dict[str, Any]:
    # what the script draws from; the pictures themselves stay in the document
    prefix, short = short_names([stage["stage"] for stage in data.stages])
    series = list(lines)
    first = series.index(start) if start else 0
    methods = list(dict.fromkeys(s.method for s in series))
    return {
        "model": data.model,
        "prefix": prefix,
        "stages": [
            {"name": stage["stage"], "short": name, "kind": stage["kind"], "facts": _facts(stage)}
            for stage, name in zip(data.stages, short)
        ],
        "series": [
            {
                "key": [s.recovered, s.code, s.side_info, s.method],
                "name": words.series_name(s),
                "colour": methods.index(s.method) % COLOURS,
                "dash": DASHES.get(s.side_info, 2),
            }
            for s in series
        ],
        "choices": [words.RECOVERED, words.CODES, words.SIDES, words.METHODS],
        "spread": words.spread_words(data),
        "metrics": [words.METRIC_NAMES[metric] for metric in METRICS],
        "points": [
            [k, i, [p.values[m] for m in METRICS], [p.spread.get(m) for m in METRICS], p.seconds, p.images, p.failed]
            for k, s in enumerate(series)
            for i, p in sorted(lines[s].items())
        ],
        "images": [
            {
                "name": image["name"],
                "values": [[k, i, *cell["values"]] for i, cells in image["cells"].items() for k, cell in cells.items()],
            }
            for image in sheet
        ],
        "start": {"series": first, "stage": _start_stage(lines[start] if start else {}, start, sheet, first)},
    }


def _pictured(cells: Mapping[int, Mapping[str, Any]]) -> bool:
    return any(cell["uri"] for cell in cells.values())


def _start_stage(points: Mapping[int, Point], start: Series | None, sheet: Sequence[Mapping[str, Any]], k: int) -> int:
    # the stage that the summary names, if there is a picture of it; otherwise the deepest one with a picture
    worst = worst_stage(points, from_image=start is not None and start.recovered == "image") or 0
    pictured = [i for i, cells in (sheet[0]["cells"] if sheet else {}).items() if k in cells and cells[k]["uri"]]
    return worst if worst in pictured or not pictured else max(pictured)


def _stage_row(stage: Mapping[str, Any]) -> dict[str, Any]:
    # a stage with its measures where the template finds them
    rip: dict[int, dict[tuple[str, str], dict[str, float | None]]] = {}
    for record in stage.get("rip") or ():
        quantiles = {name: finite(record.get(name)) for name in QUANTILES}
        if None not in quantiles.values():
            rip.setdefault(record["k"], {})[record["filters"], record["boundary"]] = quantiles
    coherence = stage.get("coherence") or {}
    return {
        "name": stage["stage"],
        "kind": stage["kind"],
        "input": stage["input_shape"],
        "code": stage["code_shape"],
        "inputs": math.prod(stage["input_shape"]),
        "outputs": math.prod(stage["code_shape"]),
        "activation": finite(stage.get("activation")),
        "pooled": finite(stage.get("pooled")),
        "coherence": {
            (which, name): finite((coherence.get(which) or {}).get(name))
            for which in ("learned", "random")
            for name in COHERENCES
        },
        "rip": rip,
    }


def _certificate_row(stage: Mapping[str, Any], patterns: Mapping[str, str]) -> dict[str, Any]:
    # what is proven of a stage, each cell as the number that it sorts by and its lines of text
    found = stage.get("certificate") or {}
    bracket = found.get("delta_k") or {}
    return {
        "name": stage["stage"],
        "k": (k := bracket.get("k")),
        "k_lines": [] if k is None else [words.count(k)],
        "brackets": [_bracket_cell(found.get(name)) for name in ("delta_k", "delta_2k")],
        "proven": found.get("proven_k"),
        "maps": [_map_cell(code) for code in _maps(stage)],
        "pattern": patterns.get(_pattern(stage) or ""),
        "pictured": words.direction(found.get("direction") or {}),
        "words": found.get("words") or "",
        "notes": found.get("notes") or [],
    }


def _bracket_cell(bracket: Mapping[str, Any] | None) -> tuple[float | None, list[str]]:
    upper = finite((bracket or {}).get("upper"))
    if bracket is None or upper is None:
        return None, []
    lines = [f"{words.significant(finite(bracket['lower']))} to {words.significant(upper)}"]
    if (ratio := finite(bracket.get("ratio"))) is not None:
        lines.append(f"ratio {words.significant(ratio)}")
    return upper, lines


def _map_cell(code: Mapping[str, Any] | None) -> tuple[float | None, list[str]]:
    if code is None:
        return None, []
    low, high = (finite(code["sigma"][end]) for end in ("lower", "upper"))
    span = f"{words.significant(low)} to {words.significant(high)}" if low else f"at most {words.significant(high)}"
    left = code["undetermined"]
    if not left:
        return high, [span, f"{words.count(code['equations'])} equations, {words.count(code['unknowns'])} unknowns"]
    known = "" if code["exact"] else "at least "
    share = words.number(100 * left / max(1, code["unknowns"]), 0)
    return high, [span, f"{known}{words.count(left)} undetermined ({share} %)"]


def _maps(stage: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    found = stage.get("certificate") or {}
    return [found.get("layer"), found.get("image")]


def _pattern(stage: Mapping[str, Any]) -> str | None:
    return ((stage.get("certificate") or {}).get("direction") or {}).get("picture")


def _rip_columns(data: ReportData) -> list[dict[str, Any]]:
    # which filters and boundaries were sampled, each with the axis on which its intervals are drawn
    records = [r for stage in data.stages for r in stage.get("rip") or ()]
    result = []
    for boundary in BOUNDARIES:
        for filters in FILTERS:
            if any((r["filters"], r["boundary"]) == (filters, boundary) for r in records):
                # raw learned filters have any length, so their axis is their own
                alike = [r for r in records if (r["filters"] == "learned") == (filters == "learned")]
                ends = [v for r in alike for name in ("p01", "p99") if (v := finite(r.get(name))) is not None]
                low, high = min([1.0, *ends]), max([1.0, *ends])
                room = 0.04 * (high - low) or 0.1
                result.append({"filters": filters, "boundary": boundary, "low": low - room, "high": high + room})
    return result


def _groups(lines: Mapping[Series, Mapping[int, Point]]) -> list[dict[str, Any]]:
    # errors that compare with each other: one table per group, its remarks numbered
    result = []
    for group in dict.fromkeys(series.group for series, points in lines.items() if points):
        members = [series for series, points in lines.items() if series.group == group and points]
        notes = list(dict.fromkeys(p.note for s in members for _, p in sorted(lines[s].items()) if p.note))
        result.append({
            "name": words.group_name(group),
            "series": members,
            "points": {series: lines[series] for series in members},
            "notes": notes,
        })
    return result


def _facts(stage: Mapping[str, Any]) -> list[list[str]]:
    # a stage in a few pairs of term and value, shown while it is selected
    number = words.number
    facts = [
        ["shape", f"{words.shape(stage['input_shape'])} → {words.shape(stage['code_shape'])}"],
        ["values in code / input", _ratio(stage)],
    ]
    nonzero = [
        f"{number(share, 1)} % after {where}"
        for where in ("activation", "pooling")
        if (share := finite(stage.get("activation" if where == "activation" else "pooled"))) is not None
    ]
    if nonzero:
        facts.append(["non-zero", ", ".join(nonzero)])
    coherence = stage.get("coherence") or {}
    if coherence:
        learned, random = (finite((coherence.get(which) or {}).get("signed")) for which in ("learned", "random"))
        facts.append(["coherence, signed", f"{number(learned)} (Gaussian {number(random)})"])
    for record in stage.get("rip") or ():
        if record["filters"] == "normalised" and record["boundary"] == "full":
            low, high = (number(finite(record.get(name))) for name in ("p01", "p99"))
            facts.append(["RIP ratio, unit norm, full", f"{low} to {high} (k = {record['k']})"])
    certificate = _certificate_row(stage, {})
    for name, (value, lines) in zip(CERTIFIED, [*certificate["brackets"][:1], *certificate["maps"]]):
        if value is not None:
            facts.append([name, lines[0]])
    return facts


def _ratio(stage: Mapping[str, Any]) -> str:
    inputs, outputs = math.prod(stage["input_shape"]), math.prod(stage["code_shape"])
    return f"{outputs:,} / {inputs:,} ({words.number(outputs / max(1, inputs), 2)})".replace(",", "\u202f")


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _text(value)) for key, value in rows(settings)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "none"
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        return "; ".join(", ".join(map(_text, v.values())) for v in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _json(payload: Any) -> str:
    # JSON that cannot end its script element, whatever names are in it
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(css: str, js: str) -> str:
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _static_plot(run: Path) -> str | None:
    # the plot for browsers without JavaScript
    file = run / "figures" / "error-depth.svg"
    if not file.is_file():
        return None
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
