"""The image from a layer's features: Gauss-Newton with the network's average ``J^T J``, corrected by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.misfit import Misfit, check_features, is_constant
from unconv.linalg import column, tiny
from unconv.solvers.lbfgs import LbfgsConfig, Metric, lbfgs
from unconv.solvers.solution import Solution, Status
from unconv.stationary import StationaryPreconditioner

Watch = Callable[[Tensor], None]
DEFAULTS = LbfgsConfig()


@dataclass(frozen=True)
class GaussNewtonConfig:
    """How Gauss-Newton works.

    Attributes:
        passes: Most passes per image, one forward and one backward each, where none are given.
        tolerance: An image has converged once ``||f(x) - y|| <= tolerance * ||y||``.
        noise: Variance ``nu`` of a feature around its linearisation that is expected at the first image, in units of
            what the residuals of the linear decoder give a feature on average, ``mean(diag H) * mean(diag C)``. Large
            values keep to what the covariance holds for likely, small ones trust the average of ``J^T J``;
            ``calibrate`` finds a layer's.
        noise_power: ``nu`` falls with this power of ``||f(x) - y||``: what the linearisation cannot explain falls too.
        noise_floor: Least share of the first ``nu``; below it, weak directions would be filled with what is left of
            the misfit.
        noise_power_known: ``noise_power`` where switches or gates are known.
        noise_floor_known: ``noise_floor`` where switches or gates are known: fewer units are then on another branch
            than the true image's, and ``nu`` can all but vanish.
        speck: Contrast of the noise that is begun with where there is no first image; without biases every ReLU is
            off at zero, and nothing says where to go.
        seed: Seed of that noise, the same for every image.
        steps: How the quasi-Newton steps are made.
    """

    passes: int = 150
    tolerance: float = 1e-5
    noise: float = 10.0
    noise_power: float = 1.0
    noise_floor: float = 2e-3
    noise_power_known: float = 1.5
    noise_floor_known: float = 1e-6
    speck: float = 1e-3
    seed: int = 0
    steps: LbfgsConfig = DEFAULTS


def gauss_newton(
    function: LayerFunction,
    features: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    initial: Tensor | None = None,
    linear: Tensor | None = None,
    box: Box | None = None,
    passes: int | None = None,
    preconditioner: StationaryPreconditioner | None = None,
    config: GaussNewtonConfig | None = None,
    watch: Watch | None = None,
) -> Solution[Tensor]:
    """Find images with given features ``y``, shape ``(N, *function.shape)``.

    Gauss-Newton steps ``-(J^T J + nu C^-1)^-1 g`` on a ``Misfit``, with the average of ``J^T J`` over places and
    reference images in place of each image's own, so that a step costs one pass and no linear solve. What the average
    misses, L-BFGS learns from the steps (Nocedal and Wright 2006, algorithm 7.4).

    ``known`` is from ``function.record``; ``initial`` are first images, noise of little contrast where ``None``;
    ``linear`` the linear decoder's estimates, at which ``noise`` is meant; results are projected on the ``box``.
    Returns images ``(N, *input)``; ``history`` holds ``||f(x) - y|| / ||y||`` after every evaluation. ``"stalled"``
    images have no descent, ``"constant"`` ones keep the first image: their features say nothing. UnconvError if
    features are not finite, have another shape than the layer's, or no gradient passes.
    """
    config = config or GaussNewtonConfig()
    check_features(function, features)
    misfit = Misfit(function, features, known)
    if initial is None:
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(function.input_shape, generator=generator).to(features)
        initial = (config.speck * contrast(box) * noise).expand(len(features), *function.input_shape)
    constant = is_constant(features)
    chosen = (~constant).nonzero().flatten()
    misfit.weigh(initial if linear is None else linear)
    metric = None
    if preconditioner is not None and len(chosen):
        with torch.no_grad():
            first = misfit((initial if linear is None else linear)[chosen], chosen)
        metric = _stationary(preconditioner, first, config, known=known.side_info != "none")

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return misfit.with_gradient(x, chosen[rows])

    def seen(x: Tensor) -> None:
        assert watch is not None
        watch(initial.index_copy(0, chosen, x))

    found = lbfgs(
        evaluate,
        initial[chosen],
        max_passes=config.passes if passes is None else passes,
        size=misfit.size[chosen],
        metric=metric,
        config=replace(config.steps, tolerance=config.tolerance),
        watch=None if watch is None else seen,
    )
    return _whole(found, initial, chosen, box)


def _stationary(
    preconditioner: StationaryPreconditioner, first: Tensor, config: GaussNewtonConfig, *, known: bool
) -> Metric:
    """Return products with ``M / nu = (H + nu C^-1)^-1``; ``first``: misfits at the linear estimates."""
    power, floor = config.noise_power, config.noise_floor
    if known:
        power, floor = config.noise_power_known, config.noise_floor_known

    def metric(v: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        share = (value / first[rows].clamp_min(tiny(value))).pow(power / 2)
        nu = config.noise * preconditioner.unit * share.clamp(floor, 1.0)
        return preconditioner.apply(v, nu) / column(nu, v)

    return metric


def _whole(found: Solution[Tensor], initial: Tensor, chosen: Tensor, box: Box | None) -> Solution[Tensor]:
    """Return the solution of all images, of which those with constant features were left as they were."""
    value = initial.index_copy(0, chosen, found.value)
    history = found.history.new_zeros(len(found.history), len(initial)).index_copy(1, chosen, found.history)
    status: list[Status] = ["constant"] * len(initial)
    passes = [0] * len(initial)
    for place, how, made in zip(chosen.tolist(), found.status, found.passes, strict=True):
        status[place], passes[place] = how, made
    return Solution(value if box is None else box.project(value), history, tuple(status), tuple(passes))
