"""The image from a layer's features: Gauss-Newton on the piecewise linear map, with conjugate gradients inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unconv.decode.priors import Euclidean, Metric, Smooth, TotalVariation
from unconv.errors import UnconvError
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.initialization import natural_images, outline
from unconv.linalg import column, dots, norms, tiny
from unconv.solvers.solution import Solution, Status

Prior = Literal["auto", "natural", "tv"]
HALVINGS = 8
SUFFICIENT = 1e-4
FORCING = (1e-4, 0.5)
BOUND = 1.0
WEIGHT = 1e-4
PROBES = 2
SHRINKAGE = 1e-2
SMOOTHNESS = ((0.3, 1.0), (0.1, 0.5), (0.01, 0.25), (-1.0, 0.0))
NATURAL_SMOOTHNESS = ((0.02, 2.0), (-1.0, 1.0))
OUTLINE_STEPS = 300
PLENTY_STEPS = 40  # passes of the outline where every direction is fixed
OPEN_SHARE = 2  # times as many where it has to do without enough equations
SETTLED = 0.02
ENOUGH, PLENTY = 1.5, 4.0  # equations per unknown: filters say much the same, so one each leaves directions open


class Jacobian:
    """The derivative of features at one batch of images, as products; each costs one pass, none the primal again.

    ``J^T w`` is a backward pass. It is linear in ``w``, so ``J v`` is the backward pass of that backward pass: for
    convolutions the forward convolution, exactly, without recomputing any activation.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Record the function at a batch.

        Args:
            function: Maps images to features, each image for itself.
            x: Images. Shape ``(N, *input)``.
        """
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._y = function(self._x)
            self._w = torch.zeros_like(self._y).requires_grad_()
            (self._pulled,) = torch.autograd.grad(self._y, self._x, self._w, create_graph=True)
        self.value = self._y.detach()

    def forward(self, v: Tensor) -> Tensor:
        """``J v``. Shape ``(N, *input)`` to that of the features."""
        (image,) = torch.autograd.grad(self._pulled, self._w, v, retain_graph=True)
        return image

    def adjoint(self, w: Tensor) -> Tensor:
        """``J^T w``. Shape of the features to ``(N, *input)``."""
        (image,) = torch.autograd.grad(self._y, self._x, w, retain_graph=True)
        return image


@dataclass(frozen=True)
class Weighting:
    """A quadratic form on residuals that counts directions of the channels alike, whatever their usual size.

    Channels of a network are alike, so plain least squares sees little but what they share, and conjugate
    gradients take long to find the rest. The inverse covariance over channels leaves exact solutions as they are.
    It is for affine maps: where gates are to be found too, it gives way to details before the outline is there.

    Attributes:
        matrix: Shape ``(N, K, K)``; ``None`` for plain least squares.
    """

    matrix: Tensor | None

    @staticmethod
    def learn(jacobian: Jacobian, like: Tensor, *, seed: int = 0) -> Weighting:
        """From the features' answer to white noise in the image.

        Args:
            jacobian: Derivative at the first images.
            like: Gives shape, type and device of images.
            seed: Seed of the noise, the same for every image.

        Returns:
            The weighting, the inverse of the covariance plus a hundredth of its mean variance.
        """
        generator = torch.Generator().manual_seed(seed)
        channels = jacobian.value.shape[1]
        covariance = jacobian.value.new_zeros(len(like), channels, channels)
        for _ in range(PROBES):
            noise = torch.randn(like.shape[1:], generator=generator, dtype=torch.float64).to(like)
            answer = jacobian.forward(noise.expand_as(like)).flatten(2)
            covariance += answer @ answer.mT
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(tiny(like)).reshape(-1, 1, 1)
        identity = torch.eye(channels, dtype=like.dtype, device=like.device)
        # Cholesky, for the LU of a batch on two threads has given garbage (oneMKL: SLASWP, parameter 6)
        factor = torch.linalg.cholesky((covariance / scale + SHRINKAGE * identity).double())
        return Weighting(torch.cholesky_inverse(factor).to(like))

    def apply(self, residual: Tensor) -> Tensor:
        """The matrix of the form times residuals. Shape ``(N, K, *pooled)`` to the same."""
        return residual if self.matrix is None else (self.matrix @ residual.flatten(2)).reshape(residual.shape)

    def at(self, rows: Tensor) -> Weighting:
        """The weighting of some of the images. ``rows``: indices, int64."""
        return Weighting(None if self.matrix is None else self.matrix[rows])


@dataclass(frozen=True)
class Continuation:
    """Preconditioners that give up smoothness as the residual falls, so that outlines come before details.

    While gates and switches are still wrong, details are what fits them best and not what the image holds. Where
    the features leave the image open, conjugate gradients end near the image that is closest in the metric, so there
    it stays that of natural images: power falls with frequency, and channels are alike.

    Attributes:
        groups: Images with the metric of each.
    """

    groups: tuple[tuple[Tensor, Metric], ...]

    @staticmethod
    def of(left: Tensor, natural: Tensor, like: Tensor) -> Continuation:
        """The metrics for given relative residuals.

        Args:
            left: Relative residuals. Shape ``(N,)``.
            natural: Which images keep the metric of natural images. Shape ``(N,)``, bool.
            like: Images.

        Returns:
            The preconditioners.
        """
        groups: list[tuple[Tensor, Metric]] = []
        for kind, levels in ((~natural, SMOOTHNESS), (natural, NATURAL_SMOOTHNESS)):
            above = torch.inf
            for limit, power in levels:
                rows = (kind & (left > limit) & (left <= above)).nonzero().flatten()
                if len(rows):
                    places = Smooth.of(like.shape[2:], power, like) if power else Euclidean()
                    groups.append((
                        rows,
                        natural_images(len(rows), places, like) if levels is NATURAL_SMOOTHNESS else places,
                    ))
                above = limit
        return Continuation(tuple(groups))

    def apply(self, x: Tensor) -> Tensor:
        """Every image by its own metric. Shape ``(N, C, *spatial)``."""
        if len(self.groups) == 1:
            return self.groups[0][1].apply(x)
        result = torch.zeros_like(x)
        for rows, metric in self.groups:
            result[rows] = metric.apply(x[rows])
        return result


def gauss_newton(
    features: LayerFunction,
    target: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    start: Tensor | None = None,
    box: Box | None = None,
    prior: Prior | None = "auto",
    weight: float = WEIGHT,
    tolerance: float = 1e-4,
    max_steps: int = 12,
    inner_steps: int = 40,
    start_steps: int = OUTLINE_STEPS,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Find images with given features (paper.md, section 3).

    Minimises ``||f(x) - target||^2 / 2`` in the norm of a ``Weighting``, plus a weighted prior, plus violations of
    the box. Each step linearises the network, solves the linear least squares by preconditioned conjugate
    gradients up to a residual that shrinks with the progress made (Eisenstat and Walker 1996), and halves the
    step until the true objective falls by a fixed share of what its slope promises, so it never rises. With known
    gates the map is affine and one linearisation holds everywhere; else the current switches and gates make it.

    Args:
        features: The network up to a stage.
        target: LayerFunction of ``N`` images. Shape ``(N, *stage.code_shape)``.
        known: Switches and gates, from ``features.record``.
        start: First images; where ``None``, those of ``outline`` if there is a prior, else zero, the mean image after
            preprocessing.
        box: Bounds of the images.
        prior: What is assumed where the features leave the image open. ``"natural"``: of all images that fit, one near
            zero in the metric of natural images (a preconditioner: it costs nothing and moves no determined image);
            ``"auto"``: the same for images with less than 1.5 non-zero values per entry, and with less than 4 as long
            as gates are far from found; ``"tv"``: a penalty on total variation on top of that; ``None``: nothing.
        weight: Of ``"tv"``: an image whose entries step by a quarter of the box's width at every place (by 1
            without a box) costs ``weight * ||target||^2``.
        tolerance: An image has converged once ``||f(x) - target|| <= tolerance * ||target||``.
        max_steps: Largest number of linearisations.
        inner_steps: Largest number of conjugate-gradient steps in each, one ``J`` and one ``J^T`` apiece.
        start_steps: Number of passes of ``outline``; twice as many for images with less than 1.5 non-zero values per
            entry, at most 40 for those with 4 and more.
        watch: Called with the images after every step, those of the outline included.

    Returns:
        Images, shape ``(N, *input)``; ``history`` holds ``||f(x) - target|| / ||target||``. ``"stalled"`` images
        have no descent along the step that was found.

    Raises:
        UnconvError: If the target is not finite or has another shape than the stage's code.
    """
    check_target(features, target)
    size = norms(target).clamp_min(tiny(target))
    natural = scarce = torch.full_like(size, prior == "natural", dtype=torch.bool)
    if prior in {"auto", "tv"}:
        natural, scarce = (_equations(target, features) < limit for limit in (ENOUGH, PLENTY))
    searching = scarce & (known.side_info != "gates")
    x = target.new_zeros(len(target), *features.input_shape) if start is None else start.clone()
    if start is None and prior is not None:
        groups = (
            (natural, OPEN_SHARE * start_steps),
            (scarce & ~natural, start_steps),
            (~scarce & ~natural, min(start_steps, PLENTY_STEPS)),
        )
        for rows, passes in groups:
            if rows.any():
                seen = None if watch is None else _among(x, rows, watch)
                given = (features, target[rows], known.select(rows))
                x[rows] = outline(*given, box=box, passes=passes, losers=rows is natural, watch=seen)
    result = x.clone()
    if known.side_info == "gates":
        weighting = Weighting.learn(Jacobian(lambda v: features(v, known), x), x)
    else:
        weighting = Weighting(None)
    objective = Objective.of(features, target, known, weighting, box, prior, weight)
    residual = features(x, known) - target
    history = [norms(residual) / size]
    status: list[Status] = ["max_steps"] * len(x)
    rows = torch.arange(len(x), device=x.device)
    forcing = torch.full_like(size, 0.3)
    stuck = torch.zeros_like(size, dtype=torch.bool)
    for step in range(max_steps + 1):
        met = norms(residual) <= tolerance * size[rows]
        for row, converged in zip(rows[met | stuck].tolist(), met[met | stuck].tolist()):
            status[row] = "converged" if converged else "stalled"
        if (met | stuck).any():
            kept = (~(met | stuck)).nonzero().flatten()
            rows, objective, x, residual, forcing = (
                rows[kept],
                objective.at(kept),
                x[kept],
                residual[kept],
                forcing[kept],
            )
        if step == max_steps or not len(rows):
            break
        jacobian = Jacobian(objective.features_at, x)
        product = objective.quadratic(jacobian, x)
        gradient = jacobian.adjoint(objective.weighting.apply(residual)) + objective.input_gradient(x)
        left = history[-1][rows]
        metric = Continuation.of(left, natural[rows] | (searching[rows] & (left > SETTLED)), x)
        direction, promised = conjugate_gradients(product, -gradient, metric, tolerance=forcing, max_steps=inner_steps)
        del jacobian, product
        before = objective.value(x, residual)
        x, residual, stuck = _search(objective, x, residual, direction, dots(gradient, direction))
        gained = (before - objective.value(x, residual)) / promised.clamp_min(tiny(before))
        forcing = torch.where(gained > 0.75, forcing / 3, torch.where(gained < 0.25, 2 * forcing, forcing))
        forcing = forcing.clamp(*FORCING)
        result[rows] = x
        history.append(history[-1].clone())
        history[-1][rows] = norms(residual) / size[rows]
        if watch is not None:
            watch(result)
    return Solution(result if box is None else box.project(result), torch.stack(history), tuple(status))


def check_target(features: LayerFunction, target: Tensor) -> None:
    """Refuse features that this stage cannot have given, before any work.

    Args:
        features: The network up to a stage.
        target: The features.

    Raises:
        UnconvError: If the shape differs or values are not finite.
    """
    if tuple(target.shape[1:]) != features.shape:
        raise UnconvError(
            f"the features have shape {tuple(target.shape[1:])}, layer {features.layer!r} gives "
            f"{features.shape}; give the features of this layer"
        )
    if not torch.isfinite(target).all():
        raise UnconvError(f"the features of layer {features.layer!r} hold NaN or infinite values")


@dataclass(frozen=True)
class Objective:
    """What Gauss-Newton minimises, for a batch.

    Attributes:
        features: The network up to a stage.
        target: Given features. Shape ``(N, *code_shape)``.
        known: What is held fixed.
        weighting: Of the residuals.
        box: Bounds of the images, or ``None``.
        bound: Weight of squared violations of the bounds. Shape ``(N,)``.
        penalty: Total variation, or ``None``.
        weight: Its weight. Shape ``(N,)``.
    """

    features: LayerFunction
    target: Tensor
    known: SideInformation
    weighting: Weighting
    box: Box | None
    bound: Tensor
    penalty: TotalVariation | None
    weight: Tensor

    @staticmethod
    def of(
        features: LayerFunction,
        target: Tensor,
        known: SideInformation,
        weighting: Weighting,
        box: Box | None,
        prior: Prior | None,
        weight: float,
    ) -> Objective:
        """The objective, with weights in the units of the features and of the box."""
        energy = dots(target, weighting.apply(target))
        unit = contrast(box)
        entries = math.prod(features.input_shape)
        penalty = TotalVariation(0.05 * unit) if prior == "tv" else None
        bound = BOUND * energy / (unit**2 * entries)
        weights = weight * energy / (unit * entries)
        return Objective(features, target, known, weighting, box, bound, penalty, weights)

    def at(self, rows: Tensor) -> Objective:
        """The objective of some of the images. ``rows``: indices, int64."""
        return replace(
            self,
            target=self.target[rows],
            known=self.known.select(rows),
            weighting=self.weighting.at(rows),
            bound=self.bound[rows],
            weight=self.weight[rows],
        )

    def features_at(self, x: Tensor) -> Tensor:
        """LayerFunction of images, differentiable. Shape ``(N, *input)`` to ``(N, *code_shape)``."""
        return self.features(x, self.known)

    def value(self, x: Tensor, residual: Tensor) -> Tensor:
        """The objective, given the residual of the features. Shape ``(N,)``."""
        value = dots(residual, self.weighting.apply(residual)) / 2
        if self.box is not None:
            value = value + self.bound / 2 * norms(x - self.box.project(x)).square()
        if self.penalty is not None:
            value = value + self.weight * self.penalty.value(x)
        return value

    def input_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the terms in the image itself. Of the shape of ``x``."""
        gradient = torch.zeros_like(x)
        if self.box is not None:
            gradient = gradient + column(self.bound, x) * (x - self.box.project(x))
        if self.penalty is not None:
            gradient = gradient + column(self.weight, x) * self.penalty.gradient(x)
        return gradient

    def quadratic(self, jacobian: Jacobian, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Products with the matrix of the local quadratic model: ``J^T J`` and the terms in the image itself."""
        outside = None if self.box is None else column(self.bound, x) * (x != self.box.project(x))

        def product(v: Tensor) -> Tensor:
            result = jacobian.adjoint(self.weighting.apply(jacobian.forward(v)))
            if outside is not None:
                result = result + outside * v
            if self.penalty is not None:
                result = result + column(self.weight, x) * self.penalty.product(x, v)
            return result

        return product


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    preconditioner: Metric | Continuation,
    *,
    tolerance: Tensor,
    max_steps: int,
) -> tuple[Tensor, Tensor]:
    """Solve ``A d = right`` from zero for a batch, ``A`` symmetric and positive semi-definite.

    Args:
        product: Products with ``A``. Shape ``(N, *shape)`` to the same.
        right: Right-hand sides. Shape ``(N, *shape)``.
        preconditioner: ``M^-1``.
        tolerance: An input is done once its residual's ``M^-1`` norm has fallen by this factor. Shape ``(N,)``.
        max_steps: Largest number of products.

    Returns:
        The solutions, and by how much ``<d, A d> / 2 - <d, right>`` fell, shape ``(N,)``.
    """
    solution = torch.zeros_like(right)
    residual = right
    steepest = preconditioner.apply(residual)
    direction = steepest
    slope = start = dots(residual, steepest)
    fallen = torch.zeros_like(slope)
    for _ in range(max_steps):
        running = slope > tolerance**2 * start
        if not running.any():
            break
        image = product(direction)
        curvature = dots(direction, image)
        running = running & (curvature > 0)
        length = torch.where(running, slope / curvature.clamp_min(tiny(slope)), 0.0)
        fallen = fallen + length * slope / 2
        solution = solution + column(length, solution) * direction
        residual = residual - column(length, residual) * image
        steepest = preconditioner.apply(residual)
        new_slope = dots(residual, steepest)
        direction = steepest + column(new_slope / slope.clamp_min(tiny(slope)), direction) * direction
        slope = torch.where(running, new_slope, slope)
    return solution, fallen


def _search(
    objective: Objective, x: Tensor, residual: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve a step until the objective falls by a share of what the slope promises.

    Returns:
        New images, their residuals, and which ones found no step.
    """
    before = objective.value(x, residual)
    length = torch.ones_like(before)
    taken, after = x, residual
    open_ = torch.ones_like(before, dtype=torch.bool)
    for _ in range(HALVINGS):
        moved = x + column(length, x) * direction
        reached = objective.features_at(moved) - objective.target
        good = open_ & (objective.value(moved, reached) <= before + SUFFICIENT * length * slope) & (slope < 0)
        taken = torch.where(column(good, x), moved, taken)
        after = torch.where(column(good, after), reached, after)
        open_ = open_ & ~good
        if not open_.any():
            break
        length = length / 2
    return taken, after, open_


def _among(x: Tensor, rows: Tensor, watch: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def seen(some: Tensor) -> None:
        whole = x.clone()
        whole[rows] = some
        watch(whole)

    return seen


def _equations(target: Tensor, features: LayerFunction) -> Tensor:
    """Non-zero values per entry of the image: a zero behind a ReLU is no equation. Shape ``(N,)``."""
    return (target != 0).flatten(1).sum(1) / math.prod(features.input_shape)
