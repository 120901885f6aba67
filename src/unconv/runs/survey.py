"""The main job: every stage of a network measured and inverted over a set of images, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from torch import Tensor

from unconv.batched import relative_norm
from unconv.errors import UnconvError
from unconv.images import ImageStream, quality, save_image
from unconv.invert.ways import Tuning, Way, coded_stage, fitting_region, invert_batch, stages_needed
from unconv.measure.activity import Activity, NonZeros, StageActivity, k_from
from unconv.measure.coherence import Coherence, coherence_pair
from unconv.measure.rip import Boundary, compare
from unconv.runs.certificates import certificate_document, first_images, keep_patterns
from unconv.runs.directory import RunDirectory
from unconv.runs.network import Captured, CapturedStream, Network
from unconv.runs.room import TOO_LARGE, is_out_of_memory, memory_for
from unconv.runs.shards import Shards, answering_for, nothing_left, rows_of, skipped_in
from unconv.runs.tally import Tally, mean
from unconv.sparsity import Pooled, Window
from unconv.stage import Stage
from unconv.stages import Stages

IMPOSED = "imposed "
INVERSION = "inversion"
BOUNDARIES: tuple[Boundary, ...] = ("full", "cropped")
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Plan:
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
    ways: tuple[Way, ...]
    region: int
    samples: int
    pictures: int
    seed: int
    effort: float = 1.0


@dataclass(frozen=True)
class Findings:
    """What a survey found.

    Attributes:
        stages: One document per stage, as ``report --json`` prints them.
        tally: The numbers of all images.
        skipped_images: ``{"file", "reason"}`` of the images left out.
        run: Where the rows are.
        parts: The names of the parts that hold them.
    """

    stages: list[dict[str, Any]]
    tally: Tally
    skipped_images: list[dict[str, str]]
    run: RunDirectory
    parts: list[str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per image, stage and way, with the fields of ``results.parquet`` and ``seconds``.

        Returns:
            Rows, image after image; a few of them are in memory at a time.
        """
        return rows_of(self.run, self.parts)


class Outcome(NamedTuple):
    """What one way gave for one image.

    Attributes:
        numbers: ``{"relative_error", "psnr", "ssim", "seconds", "status", "picture"}``.
        picture: The reconstruction in pixels, shape ``(C, H, W)``, where it is an image.
        estimate: What was recovered; ``None`` where the way is not open to the stage.
        reference: What it should be, the same shape.
    """

    numbers: dict[str, Any]
    picture: Tensor | None
    estimate: Tensor | None
    reference: Tensor


def survey(network: Network, images: ImageStream, plan: Plan, run: RunDirectory, progress: Progress) -> Findings | None:
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


def _findings(shards: Shards, plan: Plan, counted: dict[str, Any]) -> Findings:
    run, parts = shards.run, shards.names(INVERSION)
    tally = Tally()
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
    return Findings(documents, tally, list(skipped.values()), run, parts)


def work(plan: Plan, images: int) -> int:
    """Units of work of a survey, for a progress bar: one per image, stage and pass or way, twenty per stage besides."""
    return len(plan.names) * (images * (1 + len(plan.ways)) + 20)


def activity_over(
    stream: CapturedStream, names: Sequence[str], region: int | None, progress: Progress
) -> tuple[Activity, tuple[int, ...]]:
    """Share of non-zeros of each stage over a stream, in constant memory.

    Args:
        stream: Images with the inputs of the stages.
        names: The stages.
        region: Where given, stages without pooling are also counted behind an imposed pooling of this side,
            under ``IMPOSED`` and their name.
        progress: As for ``survey``.

    Returns:
        The counts, and the shape of the first image.
    """
    activity = Activity()
    shape: tuple[int, ...] = ()
    for captured in stream:
        shape = shape or tuple(captured.batch.inputs.shape[1:])
        activity.merge(_activity(stream.network, captured, names, region))
        for name in names:
            progress(f"counting {name}", len(captured.batch.names))
    return activity, shape


def _activity(network: Network, captured: Captured, names: Sequence[str], region: int | None) -> Activity:
    activity = Activity()
    try:
        for name in names:
            stage = captured.stages.get(name)
            activated = stage.activate(stage.preactivation(captured.inputs[name]))
            activity.update(name, activated, None if stage.pooling is None else stage.pool(activated).values)
            fitting = None if region is None else fitting_region(stage, region)
            if fitting is not None:
                imposed = stage.with_region(fitting).pool(activated)
                activity.update(IMPOSED + name, activated, imposed.values)
        return activity
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    count = len(captured.batch.names)
    if count == 1:
        raise UnconvError(f"{captured.batch.names[0]}: {TOO_LARGE}")
    network.room.shrink(max(1, count // 2))
    activity = Activity()
    for piece in captured.pieces(max(1, count // 2)):
        activity.merge(_activity(network, piece, names, region))
    return activity


def paper_k(stage: Stage, fraction: float) -> int:
    """The ``k`` of the paper's code of a stage, from the measured share of non-zero regions.

    Args:
        stage: The stage with the pooling that the code has.
        fraction: Share of regions with a non-zero value, 0 to 1.

    Returns:
        ``k``, at least 1.
    """
    spatial = stage.operator.output_shape[1:]
    pooled = stage.pooling.pooled_shape(spatial) if isinstance(stage.pooling, Window) else spatial
    return k_from(fraction, stage.operator.output_shape[0] * math.prod(pooled))


def _counted(network: Network, shards: Shards, plan: Plan, progress: Progress) -> dict[str, Any]:
    run = shards.run
    for found in run.parts(["activity"]):
        return found
    parts = shards.count("count", lambda images: count_block(network, images, plan.names, plan.region, progress))
    merged = merged_counts(shards.images, parts)
    # every rank has the same; one of them keeps it
    return run.part("activity", lambda: merged) if run.rank.leads else merged


def count_block(
    network: Network, images: ImageStream, names: Sequence[str], region: int | None, progress: Progress
) -> dict[str, Any]:
    """Share of non-zeros over the images of a block, in integers.

    Args:
        network: The network.
        images: The images.
        names: The stages.
        region: As for ``activity_over``.
        progress: As for ``survey``.

    Returns:
        For ``merged_counts``.
    """
    stream = CapturedStream(network, images, lambda _: names)
    activity, shape = activity_over(stream, names, region, progress)
    counts = {
        name: {"activation": asdict(counted.activation), "pooled": asdict(counted.pooled)}
        for name, counted in activity.stages.items()
    }
    return {"shape": list(shape), "counts": counts, "skipped": [asdict(s) for s in stream.skipped]}


def merged_counts(images: ImageStream, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all blocks; integers are added, so they do not depend on who has counted what.

    Args:
        images: All images.
        parts: From ``count_block``, in order.

    Returns:
        ``{"shape", "fractions", "skipped"}``: the shape of the first image, shares by stage, images left out.

    Raises:
        UnconvError: If no image is left.
    """
    activity = Activity()
    for part in parts:
        counted = {
            name: StageActivity(NonZeros(**counts["activation"]), NonZeros(**counts["pooled"]))
            for name, counts in part["counts"].items()
        }
        activity.merge(Activity(counted))
    skipped = [image for part in parts for image in part["skipped"]]
    shapes = [part["shape"] for part in parts if part["shape"]]
    if not shapes:
        raise UnconvError(nothing_left(images, skipped))
    fractions = {
        name: {"activation": counted.activation.fraction, "pooled": counted.pooled.fraction}
        for name, counted in activity.stages.items()
    }
    return {"shape": shapes[0], "fractions": fractions, "skipped": skipped}


def _measure(stage: Stage, fractions: dict[str, Any], plan: Plan, progress: Progress) -> dict[str, Any]:
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


def _model(stage: Stage, fractions: dict[str, Any], plan: Plan) -> tuple[Window | int, int]:
    # the regions of a stage's model, and how many of them are in use
    coded = coded_stage(stage, "network", fitting_region(stage, plan.region))
    region = coded.pooling if isinstance(coded.pooling, Window) else 1
    return region, paper_k(coded, _coded_fraction(stage.name, fractions))


def _certify(
    network: Network,
    stage: Stage,
    fractions: dict[str, Any],
    examples: Callable[[], Sequence[Captured]],
    plan: Plan,
    run: RunDirectory,
    progress: Progress,
) -> dict[str, Any]:
    region, k = _model(stage, fractions, plan)
    keep = keep_patterns(run, plan.names.index(stage.name), plan.pictures)
    with memory_for(f"the certificate of stage {stage.name}"):
        found = certificate_document(network, stage, region, k, examples(), keep, effort=plan.effort, seed=plan.seed)
    progress(f"certifying {stage.name}", 10)
    return found


def stage_document(stage: Stage) -> dict[str, Any]:
    """What every list of stages says of one."""
    return {
        "stage": stage.name,
        "kind": stage.kind,
        "input_shape": list(stage.input_shape),
        "code_shape": list(stage.code_shape),
    }


def coherence_document(stage: Stage, seed: int) -> dict[str, dict[str, float | None]]:
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


def _needed(stages: Stages, plan: Plan) -> list[str]:
    names = dict.fromkeys(plan.names)
    for name in plan.names:
        for way in plan.ways:
            if _why_not(stages, name, way) is None:
                names |= dict.fromkeys(stages_needed(stages, name, way))
    return list(names)


def _why_not(stages: Stages, name: str, way: Way) -> str | None:
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
    plan: Plan,
    run: RunDirectory,
    progress: Progress,
) -> list[dict[str, Any]]:
    batch = captured.batch
    pixels = network.preprocess.to_pixels(batch.inputs, batch.inputs)
    for i, index in enumerate(batch.indices):
        if index < plan.pictures:
            save_image(pixels[i], run.path / "images" / f"{index:04d}.png")
    rows = []
    for number, name in enumerate(plan.names):
        stage = captured.stages.get(name)
        imposed = fitting_region(stage, plan.region)
        k = paper_k(coded_stage(stage, "network", imposed), _coded_fraction(name, fractions))
        for order, way in enumerate(plan.ways):
            region = imposed if way.code == "paper" else None
            found = invert_images(network, captured, name, way, k=k, region=region, tuning=Tuning(plan.effort))
            for i, (index, file) in enumerate(zip(batch.indices, batch.names, strict=True)):
                row = {"image": index, "file": file, "stage": name} | way.fields() | found[i].numbers
                picture = found[i].picture
                if picture is not None and index < plan.pictures:
                    row["picture"] = f"images/{index:04d}-{number:02d}-{order:02d}.png"
                    save_image(picture, run.path / row["picture"])
                rows.append(row)
            progress(inverting(name, way, found), len(batch.names))
    return rows


def invert_images(
    network: Network,
    captured: Captured,
    name: str,
    way: Way,
    *,
    k: int | None,
    region: int | None,
    tuning: Tuning | None = None,
) -> list[Outcome]:
    """Invert one stage for a batch, one way, and compare with the truth.

    Args:
        network: The network.
        captured: The images with the inputs of the stages that ``stages_needed`` names.
        name: The stage.
        way: How.
        k: Number of regions that the paper's code keeps.
        region: Side of the regions imposed on a stage without pooling.
        tuning: What the solvers are told besides.

    Returns:
        Per image, what came out. A way that is not open to the stage has no error, and says why in its status.
    """
    most, count = network.room.most, len(captured.batch.names)

    def apart(pieces: Iterable[Captured]) -> list[Outcome]:
        again = partial(invert_images, network, name=name, way=way, k=k, region=region, tuning=tuning)
        return [outcome for piece in pieces for outcome in again(piece)]

    if most is not None and most < count:
        return apart(captured.pieces(most))
    empty = {"relative_error": None, "psnr": None, "ssim": None, "seconds": None, "picture": None}
    truth = captured.inputs[name] if way.recovered == "layer" else captured.batch.inputs
    try:
        return _outcomes(network, captured, name, way, k, region, tuning, empty)
    except UnconvError as error:
        if count > 1:  # one image may have spoilt it for the others
            return apart(captured.singly())
        return [Outcome(empty | {"status": str(error)}, None, None, truth[0])]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # here the error, which holds what was in memory, is gone
    if count == 1:
        return [Outcome(empty | {"status": TOO_LARGE}, None, None, truth[0])]
    network.room.shrink(count // 2)
    return apart(captured.pieces(count // 2))


def _outcomes(
    network: Network,
    captured: Captured,
    name: str,
    way: Way,
    k: int | None,
    region: int | None,
    tuning: Tuning | None,
    empty: dict[str, Any],
) -> list[Outcome]:
    images = captured.batch.inputs.to(network.device)
    found = invert_batch(
        network.module,
        captured.stages,
        name,
        images,
        captured.inputs,
        way,
        k=k,
        region=region,
        box=network.box,
        tuning=tuning,
    )
    errors = relative_norm(found.estimate - found.reference, found.reference).tolist()
    is_image = way.recovered == "image" or captured.stages.get(name).source == "image"
    results: list[Outcome] = []
    pixels = _pixels(network, found.estimate, found.reference) if is_image else None
    for i, error in enumerate(errors):
        if not math.isfinite(error):
            status = "what is to be recovered is zero, so there is no relative error"
            results.append(Outcome(empty | {"status": status}, None, found.estimate[i], found.reference[i]))
            continue
        numbers = empty | {"relative_error": error, "seconds": found.seconds, "status": found.status[i]}
        if pixels is not None:
            quality_of = {"psnr": pixels[1][i], "ssim": pixels[2][i]}
            numbers |= {name: value if math.isfinite(value) else None for name, value in quality_of.items()}
        picture = None if pixels is None else pixels[0][i]
        results.append(Outcome(numbers, picture, found.estimate[i], found.reference[i]))
    return results


def inverting(name: str, way: Way, outcomes: Sequence[Outcome]) -> str:
    """What to say when a batch has been inverted.

    Args:
        name: The stage.
        way: How.
        outcomes: What came out.

    Returns:
        Stage, method and mean relative error.
    """
    error = mean(outcome.numbers["relative_error"] for outcome in outcomes)
    return f"inverting {name} by {way.method}" + ("" if error is None else f", error {error:.3f}")


def _pixels(network: Network, estimate: Tensor, reference: Tensor) -> tuple[Tensor, list[float], list[float]]:
    true = network.preprocess.to_pixels(reference, reference).cpu()
    shown = network.preprocess.to_pixels(estimate, reference).cpu().clamp(0, 1)
    psnr, ssim = quality(true, shown)
    return shown, psnr.tolist(), ssim.tolist()
