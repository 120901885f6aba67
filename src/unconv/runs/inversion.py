"""Stages inverted over a stream of images, whatever code they are inverted from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from unconv.invert.ways import Tuning, Way, coded_stage
from unconv.runs.network import Captured, CapturedStream, Network
from unconv.runs.survey import IMPOSED, Outcome, Progress, activity_over, invert_images, inverting, paper_k


def invert_stream(
    stream: CapturedStream, name: str, way: Way, region: int | None, tuning: Tuning, progress: Progress
) -> Iterator[tuple[Captured, list[Outcome]]]:
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
        outcomes = invert_captured(stream.network, captured, name, way, region, fractions, tuning)
        progress(inverting(name, way, outcomes), len(outcomes))
        yield captured, outcomes


def passes(way: Way) -> int:
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


def invert_captured(
    network: Network,
    captured: Captured,
    name: str,
    way: Way,
    region: int | None,
    fractions: Mapping[str, float],
    tuning: Tuning,
) -> list[Outcome]:
    """Invert one stage for a batch, one way.

    Args:
        network: The network.
        captured: The images with the inputs of the stages that ``stages_needed`` names.
        name: The stage.
        way: How.
        region: Side of the pooling imposed on a stage that has none.
        fractions: From ``pooled_fractions``, for the paper's code.
        tuning: What the solvers are told besides.

    Returns:
        What came out per image.
    """
    k = None
    if way.code == "paper":
        stage = coded_stage(captured.stages.get(name), "network", region)
        k = paper_k(stage, fractions.get(IMPOSED + name, fractions[name]))
    return invert_images(network, captured, name, way, k=k, region=region, tuning=tuning)
