"""The image from a layer's features: Gauss-Newton on the piecewise linear map, with conjugate gradients inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unconv.decode.priors import Euclidean, Gaussian, Smooth
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.initialization import initial_image, natural_images
from unconv.inversion.jacobian import Jacobian
from unconv.inversion.objective import ChannelWeights, Objective, check_features, is_constant
from unconv.linalg import column, dots, norms, tiny
from unconv.solvers.cg import conjugate_gradients
from unconv.solvers.progress import BatchProgress
from unconv.solvers.solution import Solution

LEAST_PASSES = 3.0  # of one step: the linearisation, the gradient, one product, one trial

Watch = Callable[[Tensor], None]
Preconditioner = Callable[[Tensor, Tensor], Tensor]
"""Maps vectors and the mean squared residual of a feature of their images, shape ``(N,)``, to vectors."""


@dataclass(frozen=True)
class GaussNewtonConfig:
    """How Gauss-Newton works.

    Attributes:
        tolerance: An image has converged once ``||f(x) - y|| <= tolerance * ||y||``.
        max_steps: Largest number of linearisations.
        inner_steps: Largest number of conjugate-gradient steps in each, one ``J`` and one ``J^T`` apiece.
        armijo: Share of the decrease promised by the slope that a step has to make.
        max_trials: Number of step lengths tried, each half of the one before.
        forcing: Least and largest factor by which the inner residual has to fall (Eisenstat and Walker 1996).
        first_forcing: Its value at the first step.
        bound: Weight of violations of the box: an image a quarter of the box's width outside everywhere costs
            ``bound * ||y||^2 / 2``.
        prior: ``"natural"``: where the features leave the image open, one near the initial image in the metric of
            natural images (a preconditioner: it costs nothing and moves no determined image); ``"auto"``: the same
            for images with less than ``open_ratio`` non-zero features per entry, and with less than
            ``scarce_ratio`` as long as the relative residual is above ``settled`` and gates are not known;
            ``None``: nothing.
        open_ratio: Filters say much the same, so one equation per unknown leaves directions open.
        scarce_ratio: Likewise, while gates are to be found too.
        settled: Relative residual from which on gates hardly change.
        smoothness: Relative residuals above which the preconditioner has which exponent of smoothness
            (``priors.Smooth``), falling; so outlines come before details.
        natural_smoothness: The same in the metric of natural images.
        init_passes: Passes of ``initial_image`` where no first image is given, for images with less than
            ``scarce_ratio`` non-zero features per entry and for those with more; at most half of all passes.
        refine_passes: The same from a first image that is given, where gates are not known; in few passes nearer
            than Gauss-Newton, which goes on from there.
        probes: Noise images that the weights of channels are learnt from, where the gates are known.
        shrinkage: Share of their mean variance that is added to each channel's.
    """

    tolerance: float = 1e-4
    max_steps: int = 12
    inner_steps: int = 40
    armijo: float = 1e-4
    max_trials: int = 8
    forcing: tuple[float, float] = (1e-4, 0.5)
    first_forcing: float = 0.3
    bound: float = 1.0
    prior: Literal["auto", "natural"] | None = "auto"
    open_ratio: float = 1.5
    scarce_ratio: float = 4.0
    settled: float = 0.02
    smoothness: tuple[tuple[float, float], ...] = ((0.3, 1.0), (0.1, 0.5), (0.01, 0.25), (-1.0, 0.0))
    natural_smoothness: tuple[tuple[float, float], ...] = ((0.02, 2.0), (-1.0, 1.0))
    init_passes: tuple[int, int] = (300, 40)
    refine_passes: tuple[int, int] = (40, 0)
    probes: int = 2
    shrinkage: float = 1e-2


def gauss_newton(
    function: LayerFunction,
    features: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    initial: Tensor | None = None,
    box: Box | None = None,
    passes: int | None = None,
    preconditioner: Preconditioner | None = None,
    config: GaussNewtonConfig | None = None,
    watch: Watch | None = None,
) -> Solution[Tensor]:
    """Find images with given features.

    Minimises an ``Objective``. Each step linearises the network, solves the linear least squares by preconditioned
    conjugate gradients up to a residual that shrinks with the progress made (Eisenstat and Walker 1996), and halves
    the step until the true objective falls by a share of what its slope promises, so it never rises. With known gates
    the map is affine and one linearisation holds everywhere; else the current switches and gates make it.

    Args:
        function: The network up to a layer, ``f``.
        features: Features ``y`` of ``N`` images. Shape ``(N, *function.shape)``.
        known: Side information, from ``function.record``.
        initial: First images; where ``None``, those of ``initial_image`` if there is a prior, else zero, the mean image
            after preprocessing.
        box: Bounds of the images.
        passes: Largest number of passes (one forward, one backward) per image; no limit of its own where ``None``.
        preconditioner: Of the inner solves, such as ``StationaryPreconditioner.apply``; by the prior where ``None``.
        config: How it works.
        watch: Called with the images after every step, those of the initial image included.

    Returns:
        Images, shape ``(N, *input)``; ``history`` holds ``||f(x) - y|| / ||y||`` of the steps. ``"stalled"`` images
        have no descent along the step that was found; ``"constant"`` ones keep the initial image.

    Raises:
        UnconvError: If the features are not finite, have another shape than the layer's, or no gradient passes.
    """
    config = config or GaussNewtonConfig()
    check_features(function, features)
    size = norms(features)
    size = torch.where(size > 0, size, 1.0)
    limit = math.inf if passes is None else passes
    natural, scarce = _prior_groups(function, features, config)
    searching = scarce & (known.side_info != "gates")
    x = features.new_zeros(len(features), *function.input_shape) if initial is None else initial.clone()
    spent = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if config.prior is not None and (initial is None or known.side_info != "gates"):
        most = config.init_passes if initial is None else config.refine_passes
        for group, steps in zip((scarce, ~scarce), most, strict=True):
            rows = (group & ~is_constant(features)).nonzero().flatten()
            if len(rows) and steps:
                spent[rows] = count = int(min(steps, limit / 2))
                seen = None if watch is None else into(x, rows, watch)
                some = (function, features[rows], known.select(rows))
                start = None if initial is None else x[rows]
                x[rows] = initial_image(*some, box=box, passes=count, start=start, watch=seen)
    result = x.clone()
    weights = ChannelWeights()
    if known.side_info == "gates" and features.ndim == x.ndim and limit - spent.max() >= LEAST_PASSES + 3:
        jacobian = Jacobian(lambda v: function(v, known), x)
        weights = ChannelWeights.learn(jacobian, x, probes=config.probes, shrinkage=config.shrinkage)
        spent += 1 + config.probes / 2
    objective = Objective.of(function, features, known, weights, box, config.bound)
    residual = objective.residual(x)
    progress = BatchProgress(norms(residual) / size)
    progress.spend(spent + 0.5)
    forcing = torch.full_like(size, config.first_forcing)
    stuck = torch.zeros_like(size, dtype=torch.bool)
    for step in range(config.max_steps + 1):
        met = progress.residual <= config.tolerance
        constant = is_constant(objective.features) & ~met
        poor = limit - progress.passes[progress.running] < LEAST_PASSES
        progress.end(stuck, "stalled")
        progress.end(constant, "constant")
        progress.end(met, "converged")
        if (met | stuck | constant | poor).any():
            kept = progress.keep(~(met | stuck | constant | poor))
            objective, x, residual, forcing = objective.select(kept), x[kept], residual[kept], forcing[kept]
        if step == config.max_steps or not progress:
            break
        rows = progress.running
        # linearise: f(x + d) = f(x) + J d
        jacobian = Jacobian(objective.features_at, x)
        gradient = objective.gradient(jacobian, x, residual)
        progress.spend(1.5)
        left = progress.residual
        if preconditioner is None:
            metric = _Metrics(left, natural[rows] | (searching[rows] & (left > config.settled)), x, config).apply
        else:
            metric = _at(preconditioner, norms(residual).square() / residual[0].numel())
        # (J^T W J) d = -g
        affordable = (limit - progress.passes[rows] - 0.5).clamp(max=config.inner_steps).floor()
        direction, promised, products = conjugate_gradients(
            objective.quadratic(jacobian, x), -gradient, metric, tolerance=forcing, max_steps=affordable
        )
        progress.spend(products)
        del jacobian
        before = objective.value(x, residual)
        trials = ((limit - progress.passes[rows]) * 2).clamp(max=config.max_trials)
        x, residual, stuck, made = _search(
            objective, x, residual, direction, dots(gradient, direction), trials, config.armijo
        )
        progress.spend(made / 2)
        # a ratio of gained to promised decrease near 1 says that the linearisation holds: solve the next one better
        gained = (before - objective.value(x, residual)) / promised.clamp_min(tiny(before))
        forcing = torch.where(gained > 0.75, forcing / 3, torch.where(gained < 0.25, 2 * forcing, forcing))
        forcing = forcing.clamp(*config.forcing)
        result[rows] = x
        progress.record(norms(residual) / size[rows])
        if watch is not None:
            watch(result)
    return progress.solution(result if box is None else box.project(result))


def _prior_groups(function: LayerFunction, features: Tensor, config: GaussNewtonConfig) -> tuple[Tensor, Tensor]:
    """Return which images the natural prior holds for, all along and while gates are to be found."""
    if config.prior != "auto":
        same = torch.full((len(features),), config.prior == "natural", device=features.device)
        return same, same
    # a zero behind a ReLU is no equation
    equations = (features != 0).flatten(1).sum(1) / math.prod(function.input_shape)
    return equations < config.open_ratio, equations < config.scarce_ratio


class _Metrics:
    """Preconditioners that give up smoothness as the residual falls, so that outlines come before details.

    While gates and switches are still wrong, details are what fits them best and not what the image holds. Where the
    features leave the image open, conjugate gradients end near the image that is closest in the metric.
    """

    def __init__(self, left: Tensor, natural: Tensor, like: Tensor, config: GaussNewtonConfig) -> None:
        self._groups: list[tuple[Tensor, Euclidean | Smooth | Gaussian]] = []
        for kind, levels in ((~natural, config.smoothness), (natural, config.natural_smoothness)):
            above = torch.inf
            for least, power in levels:
                indices = (kind & (left > least) & (left <= above)).nonzero().flatten()
                above = least
                if len(indices):
                    places = Smooth.of(like.shape[2:], power, like) if power else Euclidean()
                    mixed = levels is config.natural_smoothness
                    self._groups.append((indices, natural_images(len(indices), places, like) if mixed else places))

    def apply(self, x: Tensor) -> Tensor:
        """Return every image's vector by its own metric. Shape ``(N, C, *spatial)``."""
        if len(self._groups) == 1:
            return self._groups[0][1].apply(x)
        result = torch.zeros_like(x)
        for indices, metric in self._groups:
            result[indices] = metric.apply(x[indices])
        return result


def _at(preconditioner: Preconditioner, noise: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: preconditioner(v, noise)


def _search(
    objective: Objective,
    x: Tensor,
    residual: Tensor,
    direction: Tensor,
    slope: Tensor,
    trials: Tensor,
    armijo: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve steps until the objective falls; return images, residuals, which found no step, and trials made."""
    before = objective.value(x, residual)
    length = torch.ones_like(before)
    taken, after = x, residual
    made = torch.zeros_like(trials)
    searching = (slope < 0) & (trials >= 1)
    stuck = ~searching
    while searching.any():
        moved = x + column(length, x) * direction
        reached = objective.residual(moved)
        made += searching
        good = searching & (objective.value(moved, reached) <= before + armijo * length * slope)
        taken = torch.where(column(good, x), moved, taken)
        after = torch.where(column(good, after), reached, after)
        searching = searching & ~good
        stuck = stuck | (searching & (made + 1 > trials))
        searching = searching & ~stuck
        length = length / 2
    return taken, after, stuck, made


def into(x: Tensor, indices: Tensor, watch: Watch) -> Watch:
    """Return a watcher of some of the images that shows the whole batch to another one."""

    def seen(some: Tensor) -> None:
        whole = x.clone()
        whole[indices] = some
        watch(whole)

    return seen
