"""``unconv report``: the main job, every stage measured and inverted, as a page."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from unconv.errors import UsageError
from unconv.images import ImageStream
from unconv.invert.ways import WAYS, Way
from unconv.report.data import ReportData
from unconv.report.figures import write_figures
from unconv.report.page import write_page
from unconv.runs.directory import RunDirectory, environment
from unconv.runs.network import Network, first_stages
from unconv.runs.survey import Findings, Plan, survey, work
from unconv.verbs.opening import choose_stages, open_images, open_model, rows_of_text
from unconv.verbs.options import Report
from unconv.verbs.progress import progress_bar
from unconv.zoo import LoadedModel


def run(options: Report) -> tuple[dict[str, Any], str]:
    """Measure, invert, and write the page.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.

    Raises:
        UsageError: If a number is out of range.
    """
    if min(options.region, options.samples) < 1 or options.pictures < 0 or options.effort <= 0:
        raise UsageError("--region and --samples are at least 1, --pictures at least 0, --effort above 0")
    known = dict.fromkeys(way.method for way in WAYS)
    for method in options.methods:
        if method not in known:
            raise UsageError(f"no method {method!r} in a report; use some of {', '.join(known)}")
    ways = tuple(way for way in WAYS if not options.methods or way.method in options.methods)
    loaded, network = open_model(options)
    images = open_images(options, loaded)
    names, skipped_modules = choose_stages(loaded, first_stages(network, images), options.stages)
    plan = Plan(names, ways, options.region, options.samples, options.pictures, options.seed, options.effort)
    config = _config(options, loaded, images, plan)
    path = options.out or Path("runs") / f"{_safe(options.model)}-{_fingerprint(config)}"
    run = RunDirectory(path, config)
    try:
        with progress_bar(work(plan, len(images))) as progress:
            findings = survey(network, images, plan, run, progress)
        run.write_results(findings.rows)
        data = _report_data(options, loaded, network, findings, skipped_modules, config)
        with run.writing():
            write_figures(data, path)
            page = write_page(data, path)
    finally:
        run.close()
    document = {
        "run": str(path),
        "stages": findings.stages,
        "skipped_modules": skipped_modules,
        "skipped_images": findings.skipped_images,
    }
    return document, _text(findings, plan, page)


def _config(options: Report, loaded: LoadedModel, images: ImageStream, plan: Plan) -> dict[str, Any]:
    listing = "\n".join(f"{path} {_size(path)}" for path in images.paths)
    return {
        "verb": "report",
        "model": options.model,
        "weights": {"source": loaded.weights.source, "sha256": loaded.weights.sha256},
        "preprocessing": loaded.preprocess.describe(),
        "images": {
            "given": [str(path) for path in options.images] or "bundled photographs",
            "count": len(images.paths),
            "listing_sha256": hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
        },
        "stages": list(plan.names),
        "ways": [way.fields() for way in plan.ways],
        "region": plan.region,
        "samples": plan.samples,
        "pictures": plan.pictures,
        "batch": options.batch,
        "seed": plan.seed,
        "effort": plan.effort,
        "device": options.device,
    }


def _size(path: Path) -> int | str:
    try:
        return path.stat().st_size
    except OSError:
        return "-"


def _report_data(
    options: Report,
    loaded: LoadedModel,
    network: Network,
    findings: Findings,
    skipped_modules: list[dict[str, str]],
    config: dict[str, Any],
) -> ReportData:
    pictures: dict[int, dict[str, Any]] = {}
    for row in findings.rows:
        original = f"images/{row['image']:04d}.png" if row["image"] < options.pictures else None
        entry = pictures.setdefault(row["image"], {"file": row["file"], "original": original, "reconstructions": []})
        entry["reconstructions"].append(row | {"path": row["picture"]})
    return ReportData(
        model=options.model,
        weights=f"{loaded.weights.source} (SHA-256 {loaded.weights.sha256})",
        command=command(options),
        config=config,
        environment=environment(),
        stages=findings.stages,
        skipped_modules=skipped_modules,
        skipped_images=findings.skipped_images,
        pictures=[pictures[index] for index in sorted(pictures)],
    )


def command(options: Report) -> str:
    """The command line that runs this again.

    Args:
        options: The options.

    Returns:
        One line for a shell.
    """
    default = Report(model=options.model)
    words = ["unconv", "report", options.model]
    for name, value in vars(options).items():
        if value == getattr(default, name) or name in {"model", "json", "debug"}:
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def _text(findings: Findings, plan: Plan, page: Path) -> str:
    header = ("stage", *(f"{way.recovered}: {way.method} ({way.side_info})" for way in plan.ways))
    rows = []
    for stage in findings.stages:
        found = {
            Way(i["from"], i["code"], i["method"], i["side_info"]): i["relative_error"] for i in stage["inversion"]
        }
        rows.append((stage["stage"], *(found.get(way) for way in plan.ways)))
    table = rows_of_text(header, rows)
    skipped = f"\n{len(findings.skipped_images)} images skipped" if findings.skipped_images else ""
    return f"relative error, mean over images\n{table}{skipped}\npage: {page}"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _fingerprint(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
