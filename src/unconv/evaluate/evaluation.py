"""The main job: every stage of a network measured and inverted over a set of images, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.errors import UnconvError
from unconv.evaluate.aggregate import MetricAggregator
from unconv.evaluate.batch_size import memory_for
from unconv.evaluate.certificates import certificate_document, first_images, keep_patterns
from unconv.evaluate.network import Captured, Network
from unconv.evaluate.reconstruction import invert_images, inverting
from unconv.evaluate.run_directory import RunDirectory
from unconv.evaluate.shards import Shards, answering_for, nothing_left, rows_of, skipped_in
from unconv.evaluate.sparsity_stats import IMPOSED, Progress, count_block, merged_counts, paper_k
from unconv.images import ImageStream, save_image
from unconv.inversion.methods import InversionMethod, SolverOptions, coded_stage, fitting_region, stages_needed
from unconv.measure.coherence import Coherence, coherence_pair
from unconv.measure.rip import Boundary, compare
from unconv.sparsity import Pooled, Window

INVERSION = "inversion"
BOUNDARIES: tuple[Boundary, ...] = ("full", "cropped")


@dataclass(frozen=True)
class EvaluationConfig:
    """What a survey does.

    Attributes:
        names: The stages, in execution order.
        ways: How each is inverted.
        region: Side of the regions imposed where the paper's code and the model-RIP meet a stage without pooling.
        samples: Number of random codes of the sampled model-RIP.
        pictures: Number of images whose reconstructions are kept as pictures.
        seed: Seed of Gaussian filters and random codes.
        effort: Factor of the solvers' largest numbers of steps.
    """

    names: tuple[str, ...]
    ways: tuple[InversionMethod, ...]
    region: int
    samples: int
    pictures: int
    seed: int
    effort: float = 1.0


@dataclass(frozen=True)
class EvaluationResult:
    """What a survey found.

    Attributes:
        stages: One document per stage, as ``report --json`` prints them.
        tally: The numbers of all images.
        skipped_images: ``{"file", "reason"}`` of the images left out.
        run: Where the rows are.
        parts: The names of the parts that hold them.
    """

    stages: list[dict[str, Any]]
    tally: MetricAggregator
    skipped_images: list[dict[str, str]]
    run: RunDirectory
    parts: list[str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per image, stage and way, with the fields of ``results.parquet`` and ``seconds``.

        Returns:
            Rows, image after image; a few of them are in memory at a time.
        """
        return rows_of(self.run, self.parts)


def survey(
    network: Network, images: ImageStream, plan: EvaluationConfig, run: RunDirectory, progress: Progress
) -> EvaluationResult | None:
    """Measure and invert; every part that is finished stays, and is not computed again.

    Args:
        network: The network.
        images: The images; run through twice, once to measure how sparse the codes are, once to invert them.
        plan: What to do.
        run: Where the parts go. Of a job, each rank does its share, and the first waits for the others.
        progress: Called with what has just been done and how many units of work that was; see ``work``.

    Returns:
        The findings; ``None`` for a rank that is not the first, when its share is done.

    Raises:
        UnconvError: If no image is left, or ranks have died and left parts undone.
    """
    shards = Shards(images, run)
    # the blocks go to the ranks from the first on, the stages from the last on
    owners = [shards.owner(-1 - i) for i in range(len(plan.names))]
    others = {
        f"{kind}-{i:03d}": (owner, name)
        for i, (owner, name) in enumerate(zip(owners, plan.names, strict=True))
        for kind in ("measure", "certificate")
    }
    with answering_for(shards, INVERSION, others):
        counted = _counted(network, shards, plan, progress)
        stages, fractions = network.stages(counted["shape"]), counted["fractions"]
        mine = [i for i, owner in enumerate(owners) if owner == run.rank.number]
        for i in mine:
            stage = stages.get(plan.names[i])
            run.part(f"measure-{i:03d}", lambda stage=stage: _measure(stage, fractions, plan, progress))
        examples = cache(lambda: first_images(network, images, plan.names, plan.effort))
        for i in mine:
            stage = stages.get(plan.names[i])
            run.part(
                f"certificate-{i:03d}", partial(_certify, network, stage, fractions, examples, plan, run, progress)
            )
        compute = partial(_invert, network, fractions=fractions, plan=plan, run=run, progress=progress)
        shards.invert(INVERSION, network, lambda found: _needed(found, plan), compute)
        if not run.rank.leads:
            return None
        shards.wait(INVERSION, others)
    return _findings(shards, plan, counted)


def _findings(shards: Shards, plan: EvaluationConfig, counted: dict[str, Any]) -> EvaluationResult:
    run, parts = shards.run, shards.names(INVERSION)
    tally = MetricAggregator()
    for row in rows_of(run, parts):
        tally.add(row)
    skipped = {s["file"]: s for s in [*counted["skipped"], *skipped_in(run, parts)] if s["file"] not in tally.files}
    if not tally.files:
        raise UnconvError(nothing_left(shards.images, list(skipped.values())))
    numbers = range(len(plan.names))
    documents = run.parts(f"measure-{i:03d}" for i in numbers)
    for document, certificate in zip(documents, run.parts(f"certificate-{i:03d}" for i in numbers), strict=True):
        document["certificate"] = certificate
        document["inversion"] = tally.summary(document["stage"], plan.ways)
    return EvaluationResult(documents, tally, list(skipped.values()), run, parts)


def work(plan: EvaluationConfig, images: int) -> int:
    """Units of work of a survey, for a progress bar: one per image, stage and pass or way, twenty per stage besides."""
    return len(plan.names) * (images * (1 + len(plan.ways)) + 20)


def _counted(network: Network, shards: Shards, plan: EvaluationConfig, progress: Progress) -> dict[str, Any]:
    run = shards.run
    for found in run.parts(["activity"]):
        return found
    parts = shards.count("count", lambda images: count_block(network, images, plan.names, plan.region, progress))
    merged = merged_counts(shards.images, parts)
    # every rank has the same; one of them keeps it
    return run.part("activity", lambda: merged) if run.rank.leads else merged


def _measure(stage: ConvBlock, fractions: dict[str, Any], plan: EvaluationConfig, progress: Progress) -> dict[str, Any]:
    region, k = _model(stage, fractions, plan)
    ratios = []
    for boundary in BOUNDARIES if any(stage.operator.padding) else BOUNDARIES[:1]:
        with memory_for(f"the random codes of stage {stage.name}"):
            found = compare(stage.operator, Pooled(region), k, plan.samples, seed=plan.seed, boundary=boundary)
        for filters, ratio in (
            ("learned", found.learned),
            ("normalised", found.normalised),
            ("gaussian", found.gaussian),
        ):
            quantiles = {"p01": ratio.p01, "p50": ratio.p50, "p99": ratio.p99}
            ratios.append({"filters": filters, "boundary": boundary, "k": k} | quantiles)
    progress(f"measuring {stage.name}", 10)
    return stage_document(stage) | {
        "activation": 100 * fractions[stage.name]["activation"],
        "pooled": 100 * fractions[stage.name]["pooled"],
        "coherence": coherence_document(stage, plan.seed),
        "rip": ratios,
    }


def _model(stage: ConvBlock, fractions: dict[str, Any], plan: EvaluationConfig) -> tuple[Window | int, int]:
    # the regions of a stage's model, and how many of them are in use
    coded = coded_stage(stage, "network", fitting_region(stage, plan.region))
    region = coded.pooling if isinstance(coded.pooling, Window) else 1
    return region, paper_k(coded, _coded_fraction(stage.name, fractions))


def _certify(
    network: Network,
    stage: ConvBlock,
    fractions: dict[str, Any],
    examples: Callable[[], Sequence[Captured]],
    plan: EvaluationConfig,
    run: RunDirectory,
    progress: Progress,
) -> dict[str, Any]:
    region, k = _model(stage, fractions, plan)
    keep = keep_patterns(run, plan.names.index(stage.name), plan.pictures)
    with memory_for(f"the certificate of stage {stage.name}"):
        found = certificate_document(network, stage, region, k, examples(), keep, effort=plan.effort, seed=plan.seed)
    progress(f"certifying {stage.name}", 10)
    return found


def stage_document(stage: ConvBlock) -> dict[str, Any]:
    """What every list of stages says of one."""
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "input_shape": list(stage.input_shape),
        "code_shape": list(stage.code_shape),
    }


def coherence_document(stage: ConvBlock, seed: int) -> dict[str, dict[str, float | None]]:
    """Coherence of a stage's filters, learned and Gaussian; ``None`` where a bank has no two filters, or a zero one."""
    op = stage.operator
    if not op.weight.flatten(1).any(1).all():
        # a pruned filter has no direction, so its bank has no largest cosine
        return {bank: dict.fromkeys(("signed", "absolute", "shifted")) for bank in ("learned", "random")}
    pair = coherence_pair(op.weight, seed, op.groups, stride=op.stride, dilation=op.dilation)

    def values(found: Coherence) -> dict[str, float | None]:
        numbers = {"signed": found.signed, "absolute": found.absolute, "shifted": found.shifted}
        return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

    return {"learned": values(pair.learned), "random": values(pair.random)}


def _coded_fraction(name: str, fractions: dict[str, dict[str, float]]) -> float:
    return fractions.get(IMPOSED + name, fractions[name])["pooled"]


def _needed(stages: ConvBlocks, plan: EvaluationConfig) -> list[str]:
    names = dict.fromkeys(plan.names)
    for name in plan.names:
        for way in plan.ways:
            if _why_not(stages, name, way) is None:
                names |= dict.fromkeys(stages_needed(stages, name, way))
    return list(names)


def _why_not(stages: ConvBlocks, name: str, way: InversionMethod) -> str | None:
    try:
        stages_needed(stages, name, way)
    except UnconvError as error:
        return str(error)
    return None


def _invert(
    network: Network,
    captured: Captured,
    *,
    fractions: dict[str, Any],
    plan: EvaluationConfig,
    run: RunDirectory,
    progress: Progress,
) -> list[dict[str, Any]]:
    batch = captured.batch
    pixels = network.preprocess.to_pixels(batch.inputs, batch.inputs)
    for i, index in enumerate(batch.indices):
        if index < plan.pictures:
            save_image(pixels[i], run.path / "images" / f"{index:04d}.png")
    pooled = {name: shares["pooled"] for name, shares in fractions.items()}
    rows = []
    for number, name in enumerate(plan.names):
        stage = captured.stages.get(name)
        imposed = fitting_region(stage, plan.region)
        for order, way in enumerate(plan.ways):
            region = imposed if way.code == "paper" else None
            found = invert_images(network, captured, name, way, region, pooled, SolverOptions(plan.effort))
            for i, (index, file) in enumerate(zip(batch.indices, batch.names, strict=True)):
                row = {"image": index, "file": file, "stage": name} | way.fields() | found[i].numbers
                picture = found[i].picture
                if picture is not None and index < plan.pictures:
                    row["picture"] = f"images/{index:04d}-{number:02d}-{order:02d}.png"
                    save_image(picture, run.path / row["picture"])
                rows.append(row)
            progress(inverting(name, way, found), len(batch.names))
    return rows
