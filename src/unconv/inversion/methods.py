"""One way of inverting a stage, the same for the command line and the report: what, from which code, how."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from unconv.conv_block import ConvBlock, ConvBlocks
from unconv.decode.block_input import METHODS, CodeKind, SideInfo, paper_code, paper_stage
from unconv.decode.convex import PRIORS
from unconv.decode.convex import Prior as ConvexPrior
from unconv.decode.what_where import WhatWhereDecoder, encode_chain
from unconv.errors import UnconvError, UsageError
from unconv.inversion.box import Box, contrast
from unconv.inversion.chain import chain_to_image, decode_chain, follow
from unconv.inversion.frozen_network import LayerFunction, SideInformation
from unconv.inversion.gauss_newton import OUTLINE_STEPS, WEIGHT, gauss_newton
from unconv.inversion.gauss_newton import Prior as NetworkPrior
from unconv.inversion.gradient import Optimizer, Regulariser, gradient_inversion
from unconv.linalg import norms
from unconv.solvers.solution import Solution
from unconv.sparsity import Code

Recovered = Literal["layer", "image"]
TRAINED = "decoder"
WHOLE_NETWORK = ("gauss-newton", "gradient", TRAINED)
STEPS, INNER_STEPS, GRADIENT_STEPS = 12, 40, 200
OPEN_PRIORS = {"convex": ("none", *PRIORS), "gauss-newton": ("none", "natural", "tv")}


@dataclass(frozen=True)
class InversionMethod:
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
        if self.method == TRAINED and self.side_info != "switches":
            raise UsageError("a trained decoder knows the switches, no less and no more; use --side-info switches")

    @staticmethod
    def of(
        recovered: Recovered | None = None,
        code: CodeKind | None = None,
        method: str | None = None,
        side_info: SideInfo | None = None,
    ) -> InversionMethod:
        """A way of which not all has been said.

        Args:
            recovered: The layer's input where ``None``, or the image for a method that inverts the whole network.
            code: The network's where ``None``.
            method: Where ``None``: ``"convex"``, or ``"gauss-newton"`` for the image from the network's code.
            side_info: Switches where ``None``.

        Returns:
            The way.
        """
        recovered = recovered or ("image" if method in WHOLE_NETWORK else "layer")
        method = method or ("convex" if recovered == "layer" or code == "paper" else "gauss-newton")
        return InversionMethod(recovered, code or "network", method, side_info or "switches")

    def fields(self) -> dict[str, str]:
        """The way in the words of the command line and of ``results.parquet``."""
        return {"from": self.recovered, "code": self.code, "method": self.method, "side_info": self.side_info}


DEFAULT_METHODS = (
    InversionMethod("image", "network", "transpose", "switches"),
    InversionMethod("image", "network", "min-norm", "switches"),
    *(InversionMethod("image", "network", "gauss-newton", known) for known in ("none", "switches", "gates")),
    InversionMethod("layer", "network", "transpose", "switches"),
    InversionMethod("layer", "network", "min-norm", "switches"),
    InversionMethod("layer", "network", "convex", "switches"),
    InversionMethod("layer", "paper", "iht", "switches"),
)
"""The ways that a report and a table over all stages show."""


@dataclass(frozen=True)
class SolverOptions:
    """What solvers are told besides; what does not concern a method is ignored, unless ``check`` is asked.

    Attributes:
        effort: Factor of the largest numbers of steps.
        prior: What is assumed where the code leaves the input open, one of ``OPEN_PRIORS`` of the method; its own
            choice where ``None``.
        weight: Of the prior, where it has one.
        optimizer: Of ``"gradient"``.
        regulariser: Of ``"gradient"``, in units of the image's contrast.
        jitter: Of ``"gradient"``: largest random shift in pixels before each step.
        seed: Seed of the jitter.
    """

    effort: float = 1.0
    prior: str | None = None
    weight: float | None = None
    optimizer: Optimizer = "adam"
    regulariser: Regulariser = field(default_factory=Regulariser)
    jitter: int = 0
    seed: int = 0

    def check(self, method: str) -> None:
        """Refuse what a method cannot take, before any work.

        Args:
            method: Name of the decoder.

        Raises:
            UsageError: If a prior, a weight or an option of the gradient baseline does not fit.
        """
        if not 0 < self.effort < math.inf:
            raise UsageError(f"--effort is {self.effort}; it multiplies numbers of steps, so it is above 0")
        open_ = OPEN_PRIORS.get(method, ())
        if self.prior is not None and self.prior not in open_:
            known = f"use one of {', '.join(open_)}" if open_ else f"use it with {' or '.join(OPEN_PRIORS)}"
            raise UsageError(f"{method} takes no prior {self.prior!r}; {known}")
        if self.weight is not None and (self.prior not in {"l1", "tv"} or self.weight < 0):
            raise UsageError("--prior-weight is that of --prior l1 or --prior tv, and at least 0; give both or neither")
        tuned = self.regulariser != Regulariser() or self.jitter or self.optimizer != "adam"
        if tuned and method != "gradient":
            raise UsageError(f"{method} has no optimizer, regulariser or jitter; use them with --method gradient")
        if self.jitter < 0 or (self.jitter and self.optimizer == "lbfgs"):
            raise UsageError(f"--jitter is {self.jitter}; it is at least 0, and 0 with L-BFGS, which needs one loss")


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


def coded_stage(stage: ConvBlock, code: CodeKind, region: int | None) -> ConvBlock:
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


def fitting_region(stage: ConvBlock, region: int) -> int | None:
    """The region to impose on a stage: none where it pools already or its map is smaller.

    Args:
        stage: A stage of the network.
        region: Side of the region wanted.

    Returns:
        The side, or ``None``.
    """
    fits = stage.pooling is None and min(stage.operator.output_shape[1:]) >= region
    return region if fits else None


def stages_needed(stages: ConvBlocks, name: str, way: InversionMethod) -> tuple[str, ...]:
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
    stages: ConvBlocks,
    name: str,
    images: Tensor,
    inputs: Mapping[str, Tensor],
    way: InversionMethod,
    *,
    k: int | None = None,
    region: int | None = None,
    box: Box | None = None,
    tuning: SolverOptions | None = None,
    decoder: WhatWhereDecoder | None = None,
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
        tuning: What the solvers are told besides.
        decoder: The stage's, for the way that needs a trained one.

    Returns:
        The inversion.

    Raises:
        UnconvError: If the way is not open to the stage, or the result is not finite.
    """
    tuning = tuning or SolverOptions()
    if way.method == TRAINED:
        return _trained(stages, name, images, decoder, region)
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
        features = LayerFunction(module, stage.output or stage.name, images.shape[1:])
        known = features.record(images, way.side_info)
        start = time.perf_counter()
        solution = _whole_network(way.method, features, code.values, known, box, tuning)
    else:
        prior = "smooth" if tuning.prior is None else tuning.prior
        solution = decode_chain(
            (*chain, stage),
            code,
            trail,
            way.method,
            reading=way.code,
            side_info=way.side_info,
            norm=norms(reference),
            prior=None if prior == "none" else cast(ConvexPrior, prior),
            weight=tuning.weight,
            effort=tuning.effort,
        )
    seconds = (time.perf_counter() - start) / len(x)
    _check_finite(solution.value, name, way.method)
    return Inversion(solution.value, reference, seconds, solution.status)


def decoder_missing(name: str) -> str:
    """What to say where a stage has no trained decoder.

    Args:
        name: The stage.

    Returns:
        A sentence that names the command that makes one.
    """
    return (
        f"stage {name} has no decoder at hand; unconv train-decoder MODEL --stage {name} --images FOLDER "
        "makes one, --decoders FILE takes it"
    )


@torch.no_grad()
def _trained(
    stages: ConvBlocks, name: str, images: Tensor, decoder: WhatWhereDecoder | None, region: int | None
) -> Inversion:
    if decoder is None:
        raise UnconvError(decoder_missing(name))
    chain = chain_to_image(stages, name)
    if region is not None and chain[-1].pooling is None:
        raise UnconvError(f"the decoder of stage {name} was trained on the stage as it is; leave out --region")
    codes = encode_chain(chain, images)
    start = time.perf_counter()
    estimate = decoder(codes[-1].values, codes, images.shape[2:])
    seconds = (time.perf_counter() - start) / len(images)
    _check_finite(estimate, name, TRAINED)
    return Inversion(estimate, images, seconds, ("converged",) * len(images))


def _check_finite(estimate: Tensor, name: str, method: str) -> None:
    if not torch.isfinite(estimate).all():
        raise UnconvError(f"inverting stage {name!r} by {method} gave NaN or infinite values; check the weights")


def _whole_network(
    method: str, features: LayerFunction, target: Tensor, known: SideInformation, box: Box | None, tuning: SolverOptions
) -> Solution[Tensor]:
    if method == "gradient":
        return gradient_inversion(
            features,
            target,
            known,
            optimizer=tuning.optimizer,
            regulariser=replace(tuning.regulariser, scale=contrast(box)),
            jitter=tuning.jitter,
            box=box,
            max_steps=math.ceil(GRADIENT_STEPS * tuning.effort),
            seed=tuning.seed,
        )
    return gauss_newton(
        features,
        target,
        known,
        box=box,
        prior=None if tuning.prior == "none" else cast(NetworkPrior, tuning.prior or "auto"),
        max_steps=math.ceil(STEPS * tuning.effort),
        inner_steps=math.ceil(INNER_STEPS * min(1.0, 2 * tuning.effort)),
        start_steps=math.ceil(OUTLINE_STEPS * tuning.effort),
        weight=WEIGHT if tuning.weight is None else tuning.weight,
    )


def _code(stage: ConvBlock, x: Tensor, kind: CodeKind, k: int | None) -> Code:
    if kind == "network":
        return stage.encode(x)
    return paper_code(stage, x, stage.operator.weight.shape[0] * x[0].numel() if k is None else k)
