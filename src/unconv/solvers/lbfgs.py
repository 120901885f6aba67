"""Limited-memory quasi-Newton steps (L-BFGS) for a batch, every image with a memory and a step length of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.linalg import column, dots, tiny

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LbfgsConfig:
    """How the quasi-Newton steps are made.

    Attributes:
        memory: Number of past steps kept.
        armijo: Share of the decrease promised by the slope that a step has to make.
        least_curvature: A step counts where ``<s, y>`` is above this share of ``||y||^2``.
        shrink: Least and largest factor of a step that was too long.
    """

    memory: int = 10
    armijo: float = 1e-4
    least_curvature: float = 1e-10
    shrink: tuple[float, float] = (0.1, 0.5)


DEFAULTS = LbfgsConfig()


def quasi_newton(evaluate: Evaluate, start: Tensor, *, max_steps: int, config: LbfgsConfig = DEFAULTS) -> Tensor:
    """Minimise functions whose least value is near zero (Nocedal and Wright 2006, algorithm 7.5).

    All inputs are evaluated together at each step. Where a trial lowers its function by a share of what the slope
    promises, it is taken, and the next direction tried at full length; where it does not, a shorter one is tried
    (quadratic interpolation). The first length is Polyak's, which knows that the least value is zero.

    Args:
        evaluate: Values and gradients of the functions of ``N`` inputs: shape ``(N, *shape)`` to ``(N,)`` and
            ``(N, *shape)``.
        start: Where to begin. Shape ``(N, *shape)``.
        max_steps: Number of evaluations, the first one included; the start comes back where it is 0.
        config: How steps are made.

    Returns:
        The best points. Shape ``(N, *shape)``.
    """
    if max_steps == 0:
        return start
    x = start
    value, gradient = evaluate(x)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=config.memory)
    direction = -gradient
    slope = -dots(gradient, gradient)
    length = value / slope.abs().clamp_min(tiny(slope))
    for _ in range(max_steps - 1):
        trial = torch.addcmul(x, column(length, x), direction)
        reached, pull = evaluate(trial)
        good = reached <= value + config.armijo * length * slope
        mask = column(good, x)
        step, change = torch.where(mask, trial - x, 0.0), torch.where(mask, pull - gradient, 0.0)
        # where nothing was taken the quadratic through the value, the slope and the trial's value has its least here
        shorter = -slope * length / (2 * (reached - value - length * slope)).clamp_min(tiny(slope))
        shorter = length * torch.nan_to_num(shorter, nan=config.shrink[0]).clamp(*config.shrink)
        x, gradient = torch.where(mask, trial, x), torch.where(mask, pull, gradient)
        value = torch.where(good, reached, value)
        product = dots(step, change)
        curved = product > config.least_curvature * dots(change, change)
        pairs.append((step, change, torch.where(curved, 1 / product, 0.0)))
        turned = _direction(gradient, pairs)
        direction = torch.where(mask, turned, direction)
        slope = dots(gradient, direction)
        length = torch.where(good, 1.0, shorter)
    return x


def _direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return minus the approximate inverse Hessian times the gradient; a pair whose last entry is 0 does not count."""
    q = -gradient
    shares: list[Tensor] = []
    for step, change, inverse in reversed(pairs):
        share = inverse * dots(step, q)
        q = torch.addcmul(q, column(-share, q), change)
        shares.append(share)
    scale = torch.ones_like(pairs[0][2])
    for _, change, inverse in pairs:
        size = dots(change, change)
        scale = torch.where(inverse > 0, 1 / (inverse * size).clamp_min(tiny(size)), scale)
    q = q * column(scale, q)
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        q = torch.addcmul(q, column(share - inverse * dots(change, q), q), step)
    return q
