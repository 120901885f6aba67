"""ConvBlocks inverted over a stream of images, whatever code they are inverted from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.constraints import count_statements
from unconv.errors import UnconvError
from unconv.evaluate.aggregate import MetricAggregator
from unconv.evaluate.evaluation import INVERSION
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.reconstruction import Reconstruction, invert_images, inverting
from unconv.evaluate.run_directory import RunDirectory
from unconv.evaluate.shards import Shards, answering_for, nothing_left, rows_of, skipped_in
from unconv.evaluate.sparsity_stats import Progress, activity_over, count_block, merged_counts
from unconv.images import ImageStream
from unconv.inversion.methods import InversionMethod, SolverOptions


@dataclass(frozen=True)
class Inverting:
    """ConvBlocks that are to be inverted.

    Attributes:
        names: The stages.
        ways: How each is inverted.
        needed: The stages whose inputs that reads.
        imposed: Side of the pooling imposed on a stage without one, for a way.
        region: Likewise where the sparsity of the paper's code is measured.
        tuning: What the solvers are told besides.
        keep: Called with the index of an image, its stage, the way and the outcome.
    """

    names: tuple[str, ...]
    ways: tuple[InversionMethod, ...]
    needed: Callable[[ConvBlocks], Sequence[str]]
    imposed: Callable[[ConvBlock, InversionMethod], int | None]
    region: int | None
    tuning: SolverOptions
    keep: Callable[[int, str, InversionMethod, Reconstruction], None]

    @property
    def papers(self) -> bool:
        """Whether the images are run through once more before, since the paper's code needs to know their sparsity."""
        return any(way.code == "paper" for way in self.ways)


@dataclass(frozen=True)
class Inverted:
    """What came of it.

    Attributes:
        tally: The numbers of all images.
        skipped: ``{"file", "reason"}`` of the images left out.
        statements: By stage, what ``count_statements`` counts in the first batch.
        run: Where the rows are.
        parts: The names of the parts that hold them.
    """

    tally: MetricAggregator
    skipped: list[dict[str, str]]
    statements: dict[str, dict[str, int]]
    run: RunDirectory
    parts: list[str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per image, stage and way, image after image, with the fields of ``results.parquet``."""
        return rows_of(self.run, self.parts)


def invert_all(
    network: Network, images: ImageStream, job: Inverting, run: RunDirectory, progress: Progress, *, count: bool
) -> Inverted | None:
    """Invert stages over images; every part that is finished stays, and is not computed again.

    Args:
        network: The network.
        images: The images.
        job: What to do.
        run: Where the parts go. Of several ranks, each does its share, and the first waits for the others.
        progress: Called with what has just been done and for how many images.
        count: Whether the statements of the codes are counted.

    Returns:
        What came out; ``None`` for a rank that is not the first, when its share is done.

    Raises:
        UnconvError: If no image is left, or ranks have died and left parts undone.
    """
    shards = Shards(images, run)
    with answering_for(shards, INVERSION, {}):
        counted: dict[str, Any] = {"fractions": {}, "skipped": []}
        if job.papers:
            found = shards.count("count", lambda block: count_block(network, block, job.names, job.region, progress))
            counted = merged_counts(images, found)
        fractions = {name: shares["pooled"] for name, shares in counted["fractions"].items()}

        def compute(captured: Captured) -> list[dict[str, Any]]:
            return [
                row
                for name in job.names
                for way in job.ways
                for row in _rows(network, captured, name, way, job, fractions, progress)
            ]

        shards.invert(INVERSION, network, job.needed, compute)
        if not run.rank.leads:
            return None
        shards.wait(INVERSION, {})
    parts, tally = shards.names(INVERSION), MetricAggregator()
    for row in rows_of(run, parts):
        tally.add(row)
    skipped = {s["file"]: s for s in [*counted["skipped"], *skipped_in(run, parts)] if s["file"] not in tally.files}
    if not tally.files:
        raise UnconvError(nothing_left(images, list(skipped.values())))
    statements = run.part("statements", lambda: _statements(network, images, job)) if count else {}
    return Inverted(tally, list(skipped.values()), statements, run, parts)


def _rows(
    network: Network,
    captured: Captured,
    name: str,
    way: InversionMethod,
    job: Inverting,
    fractions: Mapping[str, float],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    region = job.imposed(captured.stages.get(name), way)
    outcomes = invert_images(network, captured, name, way, region, fractions, job.tuning)
    progress(inverting(name, way, outcomes), len(outcomes))
    for index, file, found in zip(captured.batch.indices, captured.batch.names, outcomes, strict=True):
        job.keep(index, name, way, found)
        yield {"image": index, "file": file, "stage": name} | way.fields() | found.numbers


def _statements(network: Network, images: ImageStream, job: Inverting) -> dict[str, dict[str, int]]:
    captured = next(iter(CapturedStream(network, images, lambda _: job.names)))
    stages = (captured.stages.get(name) for name in job.names)
    return {stage.name: count_statements(stage, stage.encode(captured.inputs[stage.name])) for stage in stages}


def invert_stream(
    stream: CapturedStream,
    name: str,
    way: InversionMethod,
    region: int | None,
    tuning: SolverOptions,
    progress: Progress,
) -> Iterator[tuple[Captured, list[Reconstruction]]]:
    """Invert one stage, one way, batch by batch. The paper's code needs a first pass, to measure how sparse it is.

    Args:
        stream: Images with the inputs of the stages that ``stages_needed`` names.
        name: The stage.
        way: How.
        region: Side of the pooling imposed on a stage that has none.
        tuning: What the solvers are told besides.
        progress: Called with what has just been done and for how many images; see ``passes``.

    Yields:
        Each batch, and what came out per image.
    """
    fractions = pooled_fractions(stream, [name], region, progress) if way.code == "paper" else {}
    for captured in stream:
        outcomes = invert_images(stream.network, captured, name, way, region, fractions, tuning)
        progress(inverting(name, way, outcomes), len(outcomes))
        yield captured, outcomes


def passes(way: InversionMethod) -> int:
    """How often ``invert_stream`` runs through the images."""
    return 2 if way.code == "paper" else 1


def pooled_fractions(
    stream: CapturedStream, names: Sequence[str], region: int | None, progress: Progress
) -> dict[str, float]:
    """Share of non-zero regions of each stage, which gives the ``k`` of the paper's code.

    Args:
        stream: Images with the inputs of the stages.
        names: The stages.
        region: Side of the pooling imposed on a stage that has none, counted apart under ``IMPOSED`` and its name.
        progress: As for ``invert_stream``.

    Returns:
        Shares by name, 0 to 1.
    """
    activity, _ = activity_over(stream, names, region, progress)
    return {name: counted.pooled.fraction for name, counted in activity.stages.items()}
