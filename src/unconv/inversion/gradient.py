"""The baseline: images from features by gradient descent on a normalised loss (Mahendran and Vedaldi 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.misfit import check_features, is_constant
from unconv.linalg import column, norms
from unconv.solvers.solution import Solution, Status


@dataclass(frozen=True)
class Regulariser:
    """Priors of Mahendran and Vedaldi 2015, section 2, each averaged over the image's entries."""

    total_variation: float = 0.0  # weight of (dx^2 + dy^2)^(beta / 2)
    beta: float = 2.0  # its exponent
    alpha_norm: float = 0.0  # weight of |x|^alpha
    alpha: float = 6.0  # its exponent
    scale: float = 1.0  # what counts as one unit of contrast in the image

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
        learning_rate: Adam's, in units of the image's contrast (a quarter of the box's width, 1 without a box); it
            falls to zero along a cosine.
        regulariser: Priors, in units of the image's contrast.
        jitter: Largest random shift in pixels before each step.
        tolerance: An image has converged once ``||f(x) - y|| <= tolerance * ||y||``.
        max_steps: Number of steps, a pass each.
        seed: Seed of the jitter.
    """

    learning_rate: float = 0.1
    regulariser: Regulariser = Regulariser()
    jitter: int = 0
    tolerance: float = 1e-3
    max_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.jitter < 0:
            raise UsageError(f"jitter is {self.jitter}; it is at least 0")


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
    """Minimise ``||f(x) - y||^2 / ||y||^2`` plus priors by Adam; arguments and errors are those of ``gauss_newton``.

    Returns for each image the iterate of least loss; ``history`` holds ``||f(x) - y|| / ||y||`` of the iterates.
    """
    config = config or GradientConfig()
    check_features(function, features)
    x = features.new_zeros(len(features), *function.input_shape) if initial is None else initial.clone()
    best, least = x.clone(), features.new_full((len(x),), torch.inf)
    size, scale = norms(features), contrast(box)
    size = torch.where(size > 0, size, 1.0)
    regulariser = replace(config.regulariser, scale=config.regulariser.scale * scale)
    constant, met = is_constant(features), torch.zeros_like(least, dtype=torch.bool)
    steps = config.max_steps if passes is None else min(config.max_steps, max(passes - 1, 0))
    generator = torch.Generator().manual_seed(config.seed)
    adam = torch.optim.Adam([x.requires_grad_()], lr=scale * config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    spent, history = torch.zeros_like(least), []
    for step in range(steps + 1):
        shifted = x
        if config.jitter:
            shift = torch.randint(-config.jitter, config.jitter + 1, (x.ndim - 2,), generator=generator).tolist()
            shifted = x.roll(shift, dims=tuple(range(2, x.ndim)))
        with torch.enable_grad():
            residual = norms(function(shifted, known) - features) / size
            loss = residual.square() + regulariser.value(x)
        spent += ~(met | constant)
        better = (loss < least) & ~constant
        least = torch.where(better, loss, least).detach()
        best = torch.where(column(better, x), x, best).detach()
        met = met | (residual <= config.tolerance)
        history.append(residual.detach().clone())
        if watch is not None and step:
            watch(x.detach())
        if step == steps or (met | constant).all():
            break
        (x.grad,) = torch.autograd.grad(loss.sum(), x)
        adam.step()
        schedule.step()
        if box is not None:
            with torch.no_grad():
                x.copy_(box.project(x))
    pairs = zip(constant.tolist(), met.tolist(), strict=True)
    status: list[Status] = ["constant" if c and not m else "converged" if m else "max_steps" for c, m in pairs]
    made = tuple(int(n) for n in spent.tolist())
    return Solution(best if box is None else box.project(best), torch.stack(history), tuple(status), made)
