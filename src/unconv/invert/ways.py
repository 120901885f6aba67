"""One way of inverting a stage, the same for the command line and the report: what, from which code, how."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unconv.batched import norms
from unconv.decode.layer import METHODS, CodeKind, SideInfo, paper_code, paper_stage
from unconv.errors import UnconvError, UsageError
from unconv.invert.chain import chain_to_image, decode_chain, follow
from unconv.invert.gauss_newton import Box, gauss_newton
from unconv.invert.surgery import Features
from unconv.sparsity import Code
from unconv.stage import Stage, Stages

Recovered = Literal["layer", "image"]
WHOLE_NETWORK = ("gauss-newton",)
STEPS, INNER_STEPS = 12, 40


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
        if self.method not in (*METHODS, *WHOLE_NETWORK):
            raise UsageError(f"no method {self.method!r}; use one of {', '.join((*METHODS, *WHOLE_NETWORK))}")
        if self.method in WHOLE_NETWORK and (self.recovered, self.code) != ("image", "network"):
            raise UsageError(f"{self.method} inverts the whole network; use --from image --code network with it")

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
    if way.recovered == "layer" or way.method in WHOLE_NETWORK:
        return (stages.get(name).name,)
    return tuple(stage.name for stage in chain_to_image(stages, name))


def invert_batch(
    module: nn.Module,
    stages: Stages,
    name: str,
    images: Tensor,
    inputs: Mapping[str, Tensor],
    way: Way,
    *,
    k: int | None = None,
    region: int | None = None,
    box: Box | None = None,
    effort: float = 1.0,
) -> Inversion:
    """Recover a stage's input, or the image, from the stage's code.

    Args:
        module: The network.
        stages: Its stages.
        name: The stage whose code is given.
        images: The true images, as the network receives them. Shape ``(N, C, *spatial)``.
        inputs: True input of each stage that ``stages_needed`` names. Shape ``(N, M, *spatial)``.
        way: How.
        k: Number of regions that the paper's code keeps per image; all where ``None``.
        region: Side of the regions imposed on a stage without pooling.
        box: Bounds of images, where they are known.
        effort: Factor of the solvers' largest numbers of steps.

    Returns:
        The inversion.

    Raises:
        UnconvError: If the way is not open to the stage, or the result is not finite.
    """
    original = stages.get(name)
    stage = coded_stage(original, way.code, region)
    x = inputs[name]
    code = _code(stage, x, way.code, k)
    reference = x if way.recovered == "layer" else images
    alone = way.recovered == "layer" or way.method in WHOLE_NETWORK
    chain = () if alone else chain_to_image(stages, name)[:-1]
    trail = follow(chain, inputs)
    if way.side_info == "gates":
        trail.gates[name] = original.preactivation(x) > 0
    start = time.perf_counter()
    if way.method in WHOLE_NETWORK:
        features = Features(module, stage, images.shape[1:])
        known = features.record(images, way.side_info)
        start = time.perf_counter()
        solution = gauss_newton(
            features,
            code.values,
            known,
            box=box,
            max_steps=math.ceil(STEPS * effort),
            inner_steps=math.ceil(INNER_STEPS * min(1.0, 2 * effort)),
        )
    else:
        solution = decode_chain(
            (*chain, stage),
            code,
            trail,
            way.method,
            reading=way.code,
            side_info=way.side_info,
            norm=norms(reference),
            effort=effort,
        )
    seconds = (time.perf_counter() - start) / len(x)
    if not torch.isfinite(solution.value).all():
        raise UnconvError(f"inverting stage {name!r} by {way.method} gave NaN or infinite values; check the weights")
    return Inversion(solution.value, reference, seconds, solution.status)


def _code(stage: Stage, x: Tensor, kind: CodeKind, k: int | None) -> Code:
    if kind == "network":
        return stage.encode(x)
    return paper_code(stage, x, stage.operator.weight.shape[0] * x[0].numel() if k is None else k)
