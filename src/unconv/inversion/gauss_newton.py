"""The image from a layer's features: Gauss-Newton with the network's average ``J^T J``, corrected by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unconv.conv_block import SideInfo
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.misfit import Misfit, check_features, is_constant
from unconv.linalg import column, tiny
from unconv.solvers.lbfgs import LbfgsConfig, Metric, lbfgs
from unconv.solvers.solution import Solution
from unconv.stationary import StationaryPreconditioner


@dataclass(frozen=True)
class GaussNewtonConfig:
    """How Gauss-Newton works."""

    passes: int = 150  # most passes per image, one forward and one backward each, where none are given
    tolerance: float = 1e-5  # converged once ||f(x) - y|| <= tolerance * ||y||; said only while squares count
    # variance nu of a feature around its linearisation that is expected at the first image, in units of what the
    # residuals of the linear decoder give a feature on average, mean(diag H) * mean(diag C). Large values keep to what
    # the covariance holds for likely, small ones trust the average of J^T J; calibrate finds a layer's.
    noise: float = 10.0
    # nu falls with this power of ||f(x) - y||: what the linearisation cannot explain falls too
    noise_power: float = 1.0
    # least share of the first nu; below it, weak directions would be filled with what is left of the misfit
    noise_floor: float = 2e-3
    # the same two where switches or gates are known and nothing is robust: fewer units are then on another branch than
    # the true image's, and nu can all but vanish
    noise_power_known: float = 1.5
    noise_floor_known: float = 1e-6
    # whether large residuals count linearly in the end, and all branches are the network's own. Most features then fit,
    # and the few on wrong branches no longer bend the image where the others hardly see it; calibrate finds whether
    # that pays.
    robust: bool = False
    robust_after: int = 30  # passes that count squares before
    outlier: float = 0.03  # where residuals become large, as a share of their root mean square
    noise_robust: float = 2e-5  # share of the first nu from then on
    # contrast of the noise that is begun with where there is no first image; without biases every ReLU is off at zero,
    # and nothing says where to go
    speck: float = 1e-3
    seed: int = 0  # seed of that noise, the same for every image
    steps: LbfgsConfig = field(default_factory=LbfgsConfig)  # how the quasi-Newton steps are made


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
    watch: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Find images with given features ``y``, shape ``(N, *function.shape)``.

    Gauss-Newton steps ``-(J^T J + nu C^-1)^-1 g`` on a ``Misfit``, with the average of ``J^T J`` over places and
    reference images in place of each image's own, so that a step costs one pass and no linear solve. What the average
    misses, L-BFGS learns from the steps (Nocedal and Wright 2006, algorithm 7.4). With ``robust`` it ends with a
    pseudo-Huber loss in place of squares.

    ``known`` is from ``function.record``; ``initial`` are first images, noise of little contrast where ``None``;
    ``linear`` the linear decoder's estimates, at which ``noise`` is meant; results are projected on the ``box``.
    Returns images ``(N, *input)``; ``history`` holds ``||f(x) - y|| / ||y||`` after every evaluation, from
    ``robust_after`` on with large residuals counted as the misfit does. ``"stalled"`` images have no descent,
    ``"constant"`` ones keep the first image: their features say nothing. UnconvError if features are not finite, have
    another shape than the layer's, or no gradient passes.
    """
    config = config or GaussNewtonConfig()
    passes = config.passes if passes is None else passes
    check_features(function, features)
    misfit = Misfit(function, features, known)
    if initial is None:
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(function.input_shape, generator=generator).to(features)
        initial = (config.speck * contrast(box) * noise).expand(len(features), *function.input_shape)
    constant = is_constant(features)
    estimates = initial if linear is None else linear
    misfit.weigh(estimates)
    # misfits at the linear estimates; where these are the first images, nan until the solver has looked at them
    first = torch.full_like(misfit.size, torch.nan)
    if preconditioner is not None and estimates is not initial:
        with torch.no_grad():
            first = misfit(estimates, torch.arange(len(features), device=features.device))

    def minimise(start: Tensor, places: Tensor, passes: int, *, robust: bool = False) -> Solution[Tensor]:
        """Find the images at some places of the batch, from first ones ``start`` of all."""

        def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = misfit.with_gradient(x, places[rows])
            if first[places[rows]].isnan().any():
                first[places[rows]] = value
            return value, gradient

        def seen(x: Tensor) -> None:
            assert watch is not None
            watch(start.index_copy(0, places, x))

        metric = None
        if preconditioner is not None:
            metric = _stationary(preconditioner, config, first, places, known.side_info, robust=robust)
        return lbfgs(
            evaluate,
            start[places],
            max_passes=passes,
            size=misfit.size[places],
            metric=metric,
            config=replace(config.steps, tolerance=0.0 if robust else config.tolerance),
            watch=None if watch is None else seen,
        )

    places = (~constant).nonzero().flatten()
    robust = config.robust and preconditioner is not None and passes > config.robust_after
    solution = Solution(initial, first.new_zeros(1, len(first)), ("constant",) * len(first), (0,) * len(first))
    if not robust or config.robust_after:
        found = minimise(initial, places, config.robust_after if robust else passes)
        solution = _after(solution, found, places)
        places = places[[n for n, status in enumerate(found.status) if status != "converged"]]
    if robust and len(places):
        misfit.forgive(solution.value, config.outlier)
        found = minimise(solution.value, places, passes - config.robust_after, robust=True)
        solution = _after(solution, found, places)
    return solution if box is None else replace(solution, value=box.project(solution.value))


def _stationary(
    preconditioner: StationaryPreconditioner,
    config: GaussNewtonConfig,
    first: Tensor,
    places: Tensor,
    side_info: SideInfo,
    *,
    robust: bool,
) -> Metric:
    """Return products with ``M / nu = (H + nu C^-1)^-1``; ``first``: misfits of all at the linear estimates."""
    power, floor = config.noise_power, config.noise_floor
    if side_info != "none" and not config.robust:
        power, floor = config.noise_power_known, config.noise_floor_known

    def metric(v: Tensor, value: Tensor, rows: Tensor) -> Tensor:
        if robust:
            noise = torch.full_like(value, config.noise * config.noise_robust)
        else:
            share = (value / first[places[rows]].clamp_min(tiny(value))).pow(power / 2)
            noise = config.noise * share.clamp(floor, 1.0)
        nu = preconditioner.unit * noise
        return preconditioner.apply(v, nu) / column(nu, v)

    return metric


def _after(before: Solution[Tensor], found: Solution[Tensor], places: Tensor) -> Solution[Tensor]:
    """Return the solution of all images once those at some places went on."""
    history = before.history[-1].expand(len(found.history), -1).index_copy(1, places, found.history)
    status, passes = list(before.status), list(before.passes)
    for place, how, made in zip(places.tolist(), found.status, found.passes, strict=True):
        status[place], passes[place] = how, passes[place] + made
    return Solution(
        before.value.index_copy(0, places, found.value),
        torch.cat([before.history[:-1], history]),
        tuple(status),
        tuple(passes),
    )
