"""The baseline: images from features by gradient descent on a normalised loss (Mahendran and Vedaldi 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.gauss_newton import check_target
from unconv.linalg import column, norms, tiny
from unconv.solvers.solution import Solution, Status

Optimizer = Literal["adam", "lbfgs"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adam", "lbfgs")
LBFGS_MEMORY = 10


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
        """Sum of both. Shape ``(N, C, *spatial)`` to ``(N,)``."""
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


def gradient_inversion(
    features: LayerFunction,
    target: Tensor,
    known: SideInformation = NO_SIDE_INFORMATION,
    *,
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    regulariser: Regulariser | None = None,
    jitter: int = 0,
    start: Tensor | None = None,
    box: Box | None = None,
    tolerance: float = 1e-3,
    max_steps: int = 200,
    seed: int = 0,
    watch: Callable[[Tensor], None] | None = None,
) -> Solution[Tensor]:
    """Minimise ``||f(x) - target||^2 / ||target||^2`` plus priors by Adam or L-BFGS.

    Args:
        features: The network up to a stage.
        target: LayerFunction of ``N`` images. Shape ``(N, *stage.code_shape)``.
        known: Switches and gates, from ``features.record``.
        optimizer: ``"adam"``, its rate falling to zero along a cosine, or ``"lbfgs"`` with a strong Wolfe search, on
            the sum over the batch: for timings give it one image at a time.
        learning_rate: Adam's, in units of the image's scale (a quarter of the box's width, 1 without a box): 0.1 where
            ``None``; the first step of L-BFGS: 1 where ``None``.
        regulariser: Priors; none where ``None``.
        jitter: Largest random shift in pixels before each of Adam's steps.
        start: First images; zero where ``None``.
        box: Bounds, to which Adam's iterates are clipped, and the result.
        tolerance: An image has converged once ``||f(x) - target|| <= tolerance * ||target||``.
        max_steps: Number of steps: passes forward and back for Adam, iterations for L-BFGS.
        seed: Seed of the jitter.
        watch: Called with the images after every step.

    Returns:
        For each image the iterate of least loss; ``history`` holds ``||f(x) - target|| / ||target||`` of the iterates.

    Raises:
        UnconvError: If the target is not one of this stage, or the optimizer or jitter does not fit.
    """
    check_target(features, target)
    if optimizer not in OPTIMIZERS:
        raise UnconvError(f"optimizer {optimizer!r} does not exist; use one of {', '.join(OPTIMIZERS)}")
    if jitter and optimizer == "lbfgs":
        raise UnconvError("L-BFGS needs the same loss at every step; leave the jitter out or use adam")
    x = target.new_zeros(len(target), *features.input_shape) if start is None else start.clone()
    scale = contrast(box)
    descent = _Descent(features, target, known, regulariser or Regulariser(), box, x)
    if optimizer == "adam":
        rate = scale * (0.1 if learning_rate is None else learning_rate)
        _adam(descent, x, rate, jitter, tolerance, max_steps, seed, watch)
    else:
        _lbfgs(descent, x, scale, 1.0 if learning_rate is None else learning_rate, tolerance, max_steps, watch)
    return descent.solution(tolerance)


class _Descent:
    """The loss of a batch, with the best images so far and the residuals on the way."""

    def __init__(
        self,
        features: LayerFunction,
        target: Tensor,
        known: SideInformation,
        regulariser: Regulariser,
        box: Box | None,
        x: Tensor,
    ) -> None:
        self.features, self.target, self.known = features, target, known
        self.regulariser, self.box = regulariser, box
        self.size = norms(target).clamp_min(tiny(target))
        self.best = x.clone()
        self.least = torch.full_like(self.size, torch.inf)
        self.history: list[Tensor] = []

    def loss(self, x: Tensor, shift: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Loss and relative residual of each image, each of shape ``(N,)``."""
        seen = x.roll(shift, dims=tuple(range(2, x.ndim))) if any(shift) else x
        residual = norms(self.features(seen, self.known) - self.target) / self.size
        return residual.square() + self.regulariser.value(x), residual

    def note(self, x: Tensor, loss: Tensor, residual: Tensor) -> None:
        """Keep the images that are better than before."""
        better = loss.detach() < self.least
        self.least = torch.where(better, loss.detach(), self.least)
        self.best = torch.where(column(better, x), x.detach(), self.best)
        self.history.append(residual.detach().clone())

    def clip(self, x: Tensor) -> Tensor:
        return x if self.box is None else self.box.project(x)

    def solution(self, tolerance: float) -> Solution[Tensor]:
        history = torch.stack(self.history)
        best = history.amin(0)
        status: tuple[Status, ...] = tuple("converged" if met else "max_steps" for met in (best <= tolerance).tolist())
        return Solution(self.clip(self.best), history, status)


def _adam(
    descent: _Descent,
    x: Tensor,
    rate: float,
    jitter: int,
    tolerance: float,
    max_steps: int,
    seed: int,
    watch: Callable[[Tensor], None] | None,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = x.requires_grad_()
    adam = torch.optim.Adam([x], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(max_steps, 1))
    for step in range(max_steps + 1):
        shift = tuple(torch.randint(-jitter, jitter + 1, (x.ndim - 2,), generator=generator).tolist()) if jitter else ()
        loss, residual = descent.loss(x, shift)
        descent.note(x, loss, residual)
        if watch is not None and step:
            watch(x.detach())
        if step == max_steps or bool((residual <= tolerance).all()):
            break
        (x.grad,) = torch.autograd.grad(loss.sum(), x)
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(descent.clip(x))


def _lbfgs(
    descent: _Descent,
    x: Tensor,
    scale: float,
    rate: float,
    tolerance: float,
    max_steps: int,
    watch: Callable[[Tensor], None] | None,
) -> None:
    # in units of the contrast, so that the first step has a sensible length
    z = (x / scale).requires_grad_()
    lbfgs = torch.optim.LBFGS([z], lr=rate, max_iter=1, history_size=LBFGS_MEMORY, line_search_fn="strong_wolfe")
    for step in range(max_steps + 1):
        with torch.no_grad():
            loss, residual = descent.loss(scale * z)
        descent.note(scale * z, loss, residual)
        if watch is not None and step:
            watch(scale * z.detach())
        if step == max_steps or bool((residual <= tolerance).all()):
            break

        def closure() -> Tensor:
            total = descent.loss(scale * z)[0].sum()
            (gradient,) = torch.autograd.grad(total, z)
            z.grad = gradient.contiguous()  # L-BFGS views it as a vector
            return total.detach()

        lbfgs.step(closure)
