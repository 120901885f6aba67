"""``unconv report``: the main job, every stage measured and inverted, as a page."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unconv.commands.command_line import command_line
from unconv.commands.loading import choose_stages, given, open_images, open_model, rows_of_text
from unconv.commands.options import Report
from unconv.commands.progress import progress_bar
from unconv.errors import UsageError
from unconv.evaluate.evaluation import EvaluationConfig, EvaluationResult, survey, work
from unconv.evaluate.network import Network, first_stages
from unconv.evaluate.ranks import ALONE, Rank, rank_from
from unconv.evaluate.run_directory import RunDirectory, environment
from unconv.images import ImageStream
from unconv.inversion.methods import DEFAULT_METHODS, InversionMethod
from unconv.models import LoadedModel
from unconv.reporting.data import METRICS, ReportData, range_of
from unconv.reporting.figures import write_figures
from unconv.reporting.page import write_page

MOST = 3  # modules left out that are named in the terminal


def run(options: Report) -> tuple[dict[str, Any], str] | None:
    """Measure, invert, and write the page; as one of several ranks, where the environment says so.

    Args:
        options: The options.

    Returns:
        The JSON document and its text; ``None`` for a rank that is not the first.
    """
    rank = rank_from()
    ways = chosen_ways(options)
    loaded, network = open_model(options, rank=rank)
    images = open_images(options, loaded)
    job = prepare(options, ways, loaded, network, images, given(options, images), command(options))
    written = write(job, bar=rank.leads, rank=rank)
    return None if written is None else (written.document(), _text(written))


@dataclass(frozen=True)
class Job:
    """A report that is to be made: everything is decided, nothing is done.

    Attributes:
        options: As the user gave them.
        loaded: The model.
        network: Its network.
        images: The images.
        plan: What to do.
        skipped_modules: ``{"module", "reason"}`` of what is no stage or has no weights.
        config: Settings of the run, for its directory.
        path: The run directory.
        command: What makes this run again.
    """

    options: Report
    loaded: LoadedModel
    network: Network
    images: ImageStream
    plan: EvaluationConfig
    skipped_modules: list[dict[str, str]]
    config: dict[str, Any]
    path: Path
    command: str


@dataclass(frozen=True)
class Written:
    """A report that has been made.

    Attributes:
        job: What was to be done.
        findings: What was found.
        page: Path of the page.
    """

    job: Job
    findings: EvaluationResult
    page: Path

    def document(self) -> dict[str, Any]:
        """What ``report --json`` prints."""
        return {
            "run": str(self.job.path),
            "stages": self.findings.stages,
            "skipped_modules": self.job.skipped_modules,
            "skipped_images": self.findings.skipped_images,
        }


def chosen_ways(options: Report) -> tuple[InversionMethod, ...]:
    """The ways of inverting that the options name; all where they name none.

    Args:
        options: The options.

    Returns:
        Ways, in the order of the report.

    Raises:
        UsageError: If a method does not exist, or a number is out of range.
    """
    if min(options.region, options.samples) < 1 or options.pictures < 0 or not 0 < options.effort < math.inf:
        raise UsageError("--region and --samples are at least 1, --pictures at least 0, --effort above 0")
    known = dict.fromkeys(way.method for way in DEFAULT_METHODS)
    for method in options.methods:
        if method not in known:
            raise UsageError(f"no method {method!r} in a report; use some of {', '.join(known)}")
    return tuple(way for way in DEFAULT_METHODS if not options.methods or way.method in options.methods)


def prepare(
    options: Report,
    ways: tuple[InversionMethod, ...],
    loaded: LoadedModel,
    network: Network,
    images: ImageStream,
    described: dict[str, Any],
    command: str,
) -> Job:
    """Decide what a report consists of. Nothing is written.

    Args:
        options: The options.
        ways: From ``chosen_ways``.
        loaded: The model.
        network: Its network.
        images: The images, read up to the first that the network can take.
        described: What ``config.json`` says of the images; see ``given``.
        command: What makes this run again.

    Returns:
        The job.
    """
    names, skipped_modules = choose_stages(loaded, first_stages(network, images), options.stages)
    plan = EvaluationConfig(
        names, ways, options.region, options.samples, options.pictures, options.seed, options.effort
    )
    config = _config(options, loaded, described, plan)
    path = options.out or Path("runs") / f"{_safe(options.model)}-{_fingerprint(config)}"
    return Job(options, loaded, network, images, plan, skipped_modules, config, path, command)


def write(job: Job, *, bar: bool = True, rank: Rank = ALONE) -> Written | None:
    """Measure and invert, and write the run directory with its page.

    Args:
        job: What to do.
        bar: Whether to show progress on stderr.
        rank: Which process of its job this is; the first writes what all have found.

    Returns:
        What came out; ``None`` for a rank that is not the first.
    """
    run = RunDirectory(job.path, job.config, rank)
    try:
        with progress_bar(math.ceil(work(job.plan, len(job.images)) / rank.count), shown=bar) as progress:
            findings = survey(job.network, job.images, job.plan, run, progress)
        if findings is None:
            run.attendance.leave()
            return None
        run.write_results(findings.rows())
        data = _report_data(job, findings)
        with run.writing():
            write_figures(data, job.path)
            page = write_page(data, job.path)
            run.attendance.leave()
    finally:
        run.close()
    return Written(job, findings, page)


def _config(options: Report, loaded: LoadedModel, images: dict[str, Any], plan: EvaluationConfig) -> dict[str, Any]:
    return {
        "verb": "report",
        "model": options.model,
        "weights": {"source": loaded.weights.source, "sha256": loaded.weights.sha256},
        "preprocessing": loaded.preprocess.describe(),
        "images": images,
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


def _report_data(job: Job, findings: EvaluationResult) -> ReportData:
    options, loaded = job.options, job.loaded
    pictures: dict[int, dict[str, Any]] = {}
    for row in itertools.takewhile(lambda row: row["image"] < options.pictures, findings.rows()):
        original = f"images/{row['image']:04d}.png"
        entry = pictures.setdefault(row["image"], {"file": row["file"], "original": original, "reconstructions": []})
        entry["reconstructions"].append(row | {"path": row["picture"]})
    ranges = [
        dict(zip(("stage", "from", "code", "method", "side_info"), key, strict=True))
        | {metric: range_of(found.values[metric]) for metric in METRICS if len(found.values[metric]) > 1}
        for key, found in findings.tally.numbers.items()
    ]
    return ReportData(
        model=options.model,
        weights=f"{loaded.weights.source} (SHA-256 {loaded.weights.sha256})",
        command=job.command,
        config=job.config,
        environment=environment(),
        stages=findings.stages,
        skipped_modules=job.skipped_modules,
        skipped_images=findings.skipped_images,
        pictures=[pictures[index] for index in sorted(pictures)],
        ranges=ranges,
    )


def command(options: Report) -> str:
    """The command line that runs this again.

    Args:
        options: The options.

    Returns:
        One line for a shell.
    """
    return command_line(("unconv", "report", options.model), options, Report(model=options.model), said=("model",))


def _text(written: Written) -> str:
    findings, plan = written.findings, written.job.plan
    header = ("stage", *(f"{way.recovered}\n{way.method}\n{way.side_info}" for way in plan.ways))
    rows = []
    for stage in findings.stages:
        found = {
            InversionMethod(i["from"], i["code"], i["method"], i["side_info"]): i["relative_error"]
            for i in stage["inversion"]
        }
        rows.append((stage["stage"], *(found.get(way) for way in plan.ways)))
    table = rows_of_text(header, rows)
    left_out = [f"skipped {module['module']}: {module['reason']}" for module in written.job.skipped_modules]
    if len(left_out) > MOST:
        left_out[MOST:] = [f"skipped {len(left_out) - MOST} other modules; the page names them"]
    if findings.skipped_images:
        left_out.append(f"{len(findings.skipped_images)} images skipped")
    said = "relative error, mean over images: what is recovered, by which method, knowing what"
    return "\n".join([said, table, *left_out, f"page: {written.page}"])


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _fingerprint(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
