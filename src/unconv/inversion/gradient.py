"""The baseline: images from features by gradient descent on a normalised loss (Mahendran and Vedaldi 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.gauss_newton import into
from unconv.inversion.objective import check_features, is_constant
from unconv.linalg import column, norms
from unconv.solvers.solution import Solution, Status

Optimizer = Literal["adam", "lbfgs"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adam", "lbfgs")


@dataclass(frozen=True)
class Regulariser:
    """Priors of Mahendran and Vedaldi 2015, section 2, each averaged over the image's entries.

    Attributes:
        total_variation: Weight of ``(dx^2 + dy^2)^(beta / 2)``.
        beta: Its exponent.
        alpha_norm: Weight of ``|x|^alpha``.
        alpha: Its exponent.
        scale: What counts as one unit of contrast in the image.
    """

    total_variation: float = 0.0
    beta: float = 2.0
    alpha_norm: float = 0.0
    alpha: float = 6.0
    scale: float = 1.0

    def value(self, x: Tensor) -> Tensor:
        """Return the sum of both. Shape ``(N, C, *spatial)`` to ``(N,)``."""
        x = x / self.scale
        value = x.new_zeros(len(x))
        if self.total_variation:
            steps = [x.diff(dim=axis, append=x.narrow(axis, -1, 1)).square() for axis in range(2, x.ndim)]
            # the root has no slope at zero, so flat places are moved off it
            lengths = (torch.stack(steps).sum(0) + 1e-8) ** (self.beta / 2)
            value = value + self.total_variation * lengths.flatten(1).mean(1)
        if self.alpha_norm:
            value = value + self.alpha_norm * x.abs().pow(self.alpha).flatten(1).mean(1)
        return value


@dataclass(frozen=True)
class GradientConfig:
    """How gradient descent works.

    Attributes:
        optimizer: ``"adam"``, its rate falling to zero along a cosine, or ``"lbfgs"`` with a strong Wolfe search, one
            image after the other.
        learning_rate: Adam's, in units of the image's contrast (a quarter of the box's width, 1 without a box): 0.1
            where ``None``; the first step of L-BFGS: 1 where ``None``.
        regulariser: Priors, in units of the image's contrast.
        jitter: Largest random shift in pixels before each of Adam's steps.
        tolerance: An image has converged once ``||f(x) - y|| <= tolerance * ||y||``.
        max_steps: Number of steps: passes for Adam, iterations for L-BFGS.
        memory: Steps that L-BFGS remembers.
        seed: Seed of the jitter.
    """

    optimizer: Optimizer = "adam"
    learning_rate: float | None = None
    regulariser: Regulariser = Regulariser()
    jitter: int = 0
    tolerance: float = 1e-3
    max_steps: int = 200
    memory: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"optimizer is {self.optimizer!r}; use one of {', '.join(OPTIMIZERS)}")
        if self.jitter < 0 or (self.jitter and self.optimizer == "lbfgs"):
            raise UsageError(f"jitter is {self.jitter}; it is at least 0, and 0 with L-BFGS, which needs one loss")


def gradient_descent(
    function: LayerFunction,
    features: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    initial: Tensor | None = None,
    box: Box | None = None,
    passes: int | None = None,
    config: GradientConfig | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Minimise ``||f(x) - y||^2 / ||y||^2`` plus priors by Adam or L-BFGS.

    Args:
        function: The network up to a layer, ``f``.
        features: Features ``y`` of ``N`` images. Shape ``(N, *function.shape)``.
        known: Side information, from ``function.record``.
        initial: First images; zero where ``None``.
        box: Bounds, to which Adam's iterates are clipped, and the result.
        passes: Largest number of passes per image; no limit of its own where ``None``.
        config: How it works.
        watch: Called with the images after every step.

    Returns:
        For each image the iterate of least loss; ``history`` holds ``||f(x) - y|| / ||y||`` of the iterates.

    Raises:
        UnconvError: If the features are not finite, have another shape than the layer's, or no gradient passes.
    """
    config = config or GradientConfig()
    check_features(function, features)
    x = features.new_zeros(len(features), *function.input_shape) if initial is None else initial.clone()
    limit = math.inf if passes is None else passes
    if config.optimizer == "adam":
        descent = _Descent(function, features, known, config, box, x, limit)
        _adam(descent, x, watch)
        return descent.solution()
    solutions = []
    for n in range(len(x)):
        index = torch.tensor([n], device=x.device)
        descent = _Descent(function, features[index], known.select(index), config, box, x[index], limit)
        _lbfgs(descent, x[index], None if watch is None else into(x, index, watch))
        solutions.append(descent.solution())
        x[index] = solutions[-1].value
    return _joined(solutions)


class _OutOfPasses(Exception):
    """Ends a line search where no pass is left."""


class _Descent:
    """The loss of a batch, with the best images so far, the residuals on the way and the passes made."""

    def __init__(
        self,
        function: LayerFunction,
        features: Tensor,
        known: SideInformation,
        config: GradientConfig,
        box: Box | None,
        x: Tensor,
        limit: float,
    ) -> None:
        self.function, self.features, self.known = function, features, known
        self.config, self.box, self.limit, self.scale = config, box, limit, contrast(box)
        self.regulariser = replace(config.regulariser, scale=config.regulariser.scale * self.scale)
        size = norms(features)
        self.size = torch.where(size > 0, size, 1.0)
        self.best = x.clone()
        self.least = torch.full_like(self.size, torch.inf)
        self.constant = is_constant(features)
        self.met = torch.zeros_like(self.constant)
        self.history: list[Tensor] = []
        self.passes = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    @property
    def done(self) -> bool:
        """Whether every image has converged or says nothing, or passes ran out."""
        return bool((self.met | self.constant).all()) or self.passes.max().item() + 1 > self.limit

    def loss(self, x: Tensor, shift: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Return loss and relative residual of each image, each of shape ``(N,)``; a pass with its gradient."""
        shifted = x.roll(shift, dims=tuple(range(2, x.ndim))) if any(shift) else x
        residual = norms(self.function(shifted, self.known) - self.features) / self.size
        self.passes += 0.5 * (1 + x.requires_grad) * ~(self.met | self.constant)
        return residual.square() + self.regulariser.value(x), residual

    def note(self, x: Tensor, loss: Tensor, residual: Tensor) -> None:
        """Keep the images that are better than before."""
        better = (loss.detach() < self.least) & ~self.constant
        self.least = torch.where(better, loss.detach(), self.least)
        self.best = torch.where(column(better, x), x.detach(), self.best)
        self.met = self.met | (residual.detach() <= self.config.tolerance)
        self.history.append(residual.detach().clone())

    def clip(self, x: Tensor) -> Tensor:
        return x if self.box is None else self.box.project(x)

    def solution(self) -> Solution[Tensor]:
        status: tuple[Status, ...] = tuple(
            "constant" if constant and not met else "converged" if met else "max_steps"
            for constant, met in zip(self.constant.tolist(), self.met.tolist())
        )
        passes = tuple(int(n) for n in self.passes.ceil().tolist())
        return Solution(self.clip(self.best), torch.stack(self.history), status, passes)


def _joined(solutions: list[Solution[Tensor]]) -> Solution[Tensor]:
    longest = max(len(s.history) for s in solutions)
    histories = [torch.cat([s.history, s.history[-1:].expand(longest - len(s.history), -1)]) for s in solutions]
    return Solution(
        torch.cat([s.value for s in solutions]),
        torch.cat(histories, 1),
        tuple(s.status[0] for s in solutions),
        tuple(s.passes[0] for s in solutions),
    )


def _adam(descent: _Descent, x: Tensor, watch: Callable[[Tensor], None] | None) -> None:
    config = descent.config
    steps = int(min(config.max_steps, max(descent.limit - 1, 0)))
    generator = torch.Generator().manual_seed(config.seed)
    x = x.requires_grad_()
    rate = descent.scale * (0.1 if config.learning_rate is None else config.learning_rate)
    adam = torch.optim.Adam([x], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    for step in range(steps + 1):
        shift: tuple[int, ...] = ()
        if config.jitter:
            numbers = torch.randint(-config.jitter, config.jitter + 1, (x.ndim - 2,), generator=generator)
            shift = tuple(numbers.tolist())
        loss, residual = descent.loss(x, shift)
        descent.note(x, loss, residual)
        if watch is not None and step:
            watch(x.detach())
        if step == steps or descent.done:
            break
        (x.grad,) = torch.autograd.grad(loss.sum(), x)
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(descent.clip(x))


def _lbfgs(descent: _Descent, x: Tensor, watch: Callable[[Tensor], None] | None) -> None:
    config, scale = descent.config, descent.scale
    # in units of the contrast, so that the first step has a sensible length
    z = (x / scale).requires_grad_()
    rate = 1.0 if config.learning_rate is None else config.learning_rate
    lbfgs = torch.optim.LBFGS([z], lr=rate, max_iter=1, history_size=config.memory, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        if descent.passes.max() + 1 > descent.limit:
            raise _OutOfPasses
        total = descent.loss(scale * z)[0].sum()
        (gradient,) = torch.autograd.grad(total, z)
        z.grad = gradient.contiguous()  # L-BFGS views it as a vector
        return total.detach()

    for step in range(config.max_steps + 1):
        with torch.no_grad():
            descent.note(scale * z, *descent.loss(scale * z))
        if watch is not None and step:
            watch(scale * z.detach())
        if step == config.max_steps or descent.done:
            break
        try:
            lbfgs.step(closure)
        except _OutOfPasses:
            break
