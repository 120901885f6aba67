"""One way of inverting a stage, the same for the command line and the report: what, from which code, how."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unconv.batched import norms
from unconv.decode.layer import METHODS, CodeKind, SideInfo, decode_layer, paper_code, paper_stage
from unconv.errors import UnconvError, UsageError
from unconv.invert.chain import chain_to_image, decode_chain, follow
from unconv.sparsity import Code
from unconv.stage import Stage, Stages

Recovered = Literal["layer", "image"]


@dataclass(frozen=True)
class Way:
    """What is recovered, from which code, by which method, knowing what.

    Attributes:
        recovered: ``"layer"``: the stage's own input; ``"image"``: the network's input.
        code: ``"network"``: what the network computes, with bias, activation and its own pooling; ``"paper"``:
            Table 3's unit filters, no bias, magnitude pooling and ``k`` regions.
        method: Name of the decoder.
        side_info: ``"none"``, ``"switches"`` or ``"gates"``, as far as known on the whole way.
    """

    recovered: Recovered
    code: CodeKind
    method: str
    side_info: SideInfo

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"no method {self.method!r}; use one of {', '.join(METHODS)}")

    def fields(self) -> dict[str, str]:
        """The way in the words of the command line and of ``results.parquet``."""
        return {"from": self.recovered, "code": self.code, "method": self.method, "side_info": self.side_info}


@dataclass(frozen=True)
class Inversion:
    """What one way gave for a batch.

    Attributes:
        estimate: What was recovered. Shape ``(N, *shape)``.
        reference: What it should be, same shape.
        seconds: Time per image.
        status: How the solver ended, per image.
    """

    estimate: Tensor
    reference: Tensor
    seconds: float
    status: tuple[str, ...]


def coded_stage(stage: Stage, code: CodeKind, region: int | None) -> Stage:
    """The stage as the code sees it: with an imposed pooling where it has none, in the network's or paper's reading.

    Args:
        stage: A stage of the network.
        code: Which reading.
        region: Side of the square regions imposed on a stage without pooling; none where ``None``.

    Returns:
        The stage.
    """
    if region is not None and stage.pooling is None:
        stage = stage.with_region(region)
    return paper_stage(stage) if code == "paper" else stage


def fitting_region(stage: Stage, region: int) -> int | None:
    """The region to impose on a stage: none where it pools already or its map is smaller.

    Args:
        stage: A stage of the network.
        region: Side of the region wanted.

    Returns:
        The side, or ``None``.
    """
    fits = stage.pooling is None and min(stage.operator.output_shape[1:]) >= region
    return region if fits else None


def stages_needed(stages: Stages, name: str, way: Way) -> tuple[str, ...]:
    """The stages whose inputs an inversion reads.

    Args:
        stages: The stages of the network.
        name: The stage to invert.
        way: How.

    Returns:
        Names, the image's side first.
    """
    if way.recovered == "layer":
        return (stages.get(name).name,)
    return tuple(stage.name for stage in chain_to_image(stages, name))


def invert_batch(
    stages: Stages,
    name: str,
    inputs: Mapping[str, Tensor],
    way: Way,
    *,
    k: int | None = None,
    region: int | None = None,
) -> Inversion:
    """Recover a stage's input, or the image, from the stage's code.

    Args:
        stages: The stages of the network.
        name: The stage whose code is given.
        inputs: True input of each stage that ``stages_needed`` names. Shape ``(N, M, *spatial)``.
        way: How.
        k: Number of regions that the paper's code keeps per image; all where ``None``.
        region: Side of the regions imposed on a stage without pooling.

    Returns:
        The inversion.

    Raises:
        UnconvError: If the result is not finite.
    """
    original = stages.get(name)
    stage = coded_stage(original, way.code, region)
    x = inputs[name]
    code = _code(stage, x, way.code, k)
    gates = original.preactivation(x) > 0 if way.side_info == "gates" else None
    if way.recovered == "layer":
        start = time.perf_counter()
        solution = decode_layer(
            stage, code, way.method, reading=way.code, side_info=way.side_info, gates=gates, norm=norms(x)
        )
        estimate, reference, status = solution.value, x, solution.status
    else:
        chain = (*chain_to_image(stages, name)[:-1], stage)
        reference = inputs[chain[0].name]
        trail = follow(chain[:-1], inputs)
        if gates is not None:
            trail.gates[name] = gates
        start = time.perf_counter()
        solution = decode_chain(
            chain, code, trail, way.method, reading=way.code, side_info=way.side_info, norm=norms(reference)
        )
        estimate, status = solution.value, solution.status
    seconds = (time.perf_counter() - start) / len(x)
    if not torch.isfinite(estimate).all():
        raise UnconvError(f"inverting stage {name!r} by {way.method} gave NaN or infinite values; check the weights")
    return Inversion(estimate, reference, seconds, status)


def _code(stage: Stage, x: Tensor, kind: CodeKind, k: int | None) -> Code:
    if kind == "network":
        return stage.encode(x)
    return paper_code(stage, x, stage.operator.weight.shape[0] * x[0].numel() if k is None else k)
