"""The baseline: images from features by gradient descent on a normalised loss (Mahendran and Vedaldi 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.inversion.misfit import check_features, is_constant
from unconv.linalg import column, norms
from unconv.solvers.solution import Solution, Status, statuses


@dataclass(frozen=True)
class GradientConfig:
    """How gradient descent works."""

    # Adam's, in units of the image's contrast (a quarter of the box's width, 1 without a box); falls along a cosine
    learning_rate: float = 0.1
    tolerance: float = 1e-3  # an image has converged once ||f(x) - y|| <= tolerance * ||y||
    max_steps: int = 200  # number of steps, a pass each


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
    """Minimise ``||f(x) - y||^2 / ||y||^2`` by Adam; arguments and errors are those of ``gauss_newton``.

    Returns for each image the iterate of least residual; ``history`` holds ``||f(x) - y|| / ||y||`` of the iterates.
    """
    config = config or GradientConfig()
    check_features(function, features)
    x = features.new_zeros(len(features), *function.input_shape) if initial is None else initial.clone()
    best, least = x.clone(), features.new_full((len(x),), torch.inf)
    size, scale = norms(features), contrast(box)
    size = torch.where(size > 0, size, 1.0)
    constant, met = is_constant(features), torch.zeros_like(least, dtype=torch.bool)
    steps = config.max_steps if passes is None else min(config.max_steps, max(passes - 1, 0))
    adam = torch.optim.Adam([x.requires_grad_()], lr=scale * config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    spent, history = torch.zeros_like(least), []
    for step in range(steps + 1):
        with torch.enable_grad():
            residual = norms(function(x, known) - features) / size
            loss = residual.square()
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
    pairs = zip(constant.tolist(), statuses(met), strict=True)
    status: list[Status] = ["constant" if c and how != "converged" else how for c, how in pairs]
    made = tuple(int(n) for n in spent.tolist())
    return Solution(best if box is None else box.project(best), torch.stack(history), tuple(status), made)
