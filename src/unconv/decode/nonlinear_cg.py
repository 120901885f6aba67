"""Preconditioned non-linear conjugate gradients for violations of constraints on ``W x``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.decode.constraints import Constraints
from unconv.decode.priors import Covariance
from unconv.linalg import column, dots, tiny
from unconv.operators import LinearOperator
from unconv.solvers.solution import BatchProgress, Solution

# of the line search, no step of which costs a product with W
NEWTON_STEPS = 5  # most safeguarded Newton steps on the derivative,
SLOPE_TOLERANCE = 0.1  # which end where it has fallen to this share of its first value
MAX_BACKTRACKS = 12  # times that a step which raises the objective all the same is quartered, before none is made


@dataclass(frozen=True)
class Iterate:
    """Inputs ``x``, ``h = W x``, the gradient of ``f`` at ``h``, the norm of all violations, and the objective."""

    x: Tensor
    h: Tensor
    grad_h: Tensor
    violation: Tensor
    value: Tensor

    def at(self, rows: Tensor) -> Iterate:
        """Return the iterate of some of the inputs. ``rows``: indices, int64."""
        return Iterate(self.x[rows], self.h[rows], self.grad_h[rows], self.violation[rows], self.value[rows])


@dataclass(frozen=True)
class Objective:
    """The objective ``f(W x) + negativity / 2 * ||min(x, 0)||^2`` of each input."""

    operator: LinearOperator
    constraints: Constraints  # what W x has to agree with, which gives f
    negativity: float = 0.0  # weight of negative entries; 0 where the input may be negative

    def at(self, rows: Tensor) -> Objective:
        """Return the objective of some of the inputs. ``rows``: indices, int64."""
        return replace(self, constraints=self.constraints.at(rows))

    def evaluate(self, x: Tensor, h: Tensor) -> Iterate:
        """Return the iterate at inputs whose ``h = W x`` is known."""
        grad_h, squared = self.constraints.evaluate(h)
        if self.negativity:
            negative = x.clamp(max=0)
            squared = squared + self.negativity * dots(negative, negative)
        return Iterate(x, h, grad_h, squared.sqrt(), squared / 2)

    def gradient(self, iterate: Iterate) -> Tensor:
        """Return the gradient with respect to ``x``; costs one ``W^T``."""
        # g = W^T grad f(h) + negativity min(x, 0)
        gradient = self.operator.adjoint(iterate.grad_h)
        if self.negativity:
            gradient = gradient.add_(iterate.x.clamp(max=0), alpha=self.negativity)
        return gradient

    def slope(self, iterate: Iterate, direction: Tensor, image: Tensor) -> Tensor:
        """Return the derivative along a direction whose ``image`` under ``W`` is known. Shape ``(N,)``."""
        slope = dots(iterate.grad_h, image)
        if self.negativity:
            slope = slope + self.negativity * dots(iterate.x.clamp(max=0), direction)
        return slope

    def curvature(self, iterate: Iterate, direction: Tensor, image: Tensor) -> Tensor:
        """Return the second derivative along a direction whose ``image`` is known, without kinks. Shape ``(N,)``."""
        curvature = self.constraints.curvature(iterate.h, iterate.grad_h, image)
        if self.negativity:
            below = (iterate.x < 0) * direction
            curvature = curvature + self.negativity * dots(below, below)
        return curvature


def nonlinear_cg(
    objective: Objective, start: Tensor, preconditioner: Covariance, *, tolerance: float, max_steps: int
) -> Solution[Tensor]:
    """Minimise from a start by conjugate gradients (Polak and Ribière 1969, restarted), preconditioned."""
    # An input has converged once the norm of its violations is at most ``tolerance``, relative to the norm of the
    # values in its code, or once the preconditioned gradient has fallen to the square of it.
    size = objective.constraints.size().clamp_min(tiny(start))
    result = start.clone()
    iterate = objective.evaluate(start, objective.operator.forward(start))
    progress = BatchProgress(iterate.violation / size)
    limit = old_slope = torch.ones_like(size)
    direction = old_gradient = torch.zeros_like(start)
    # the first direction is that of steepest descent, as where the last step has led nowhere
    stuck = torch.ones(len(start), dtype=torch.bool, device=start.device)
    steepest_taken = ~stuck
    for step in range(max_steps + 1):
        gradient = objective.gradient(iterate)
        steepest = preconditioner.apply(gradient)
        slope = dots(gradient, steepest)
        limit = tolerance**4 * slope if step == 0 else limit
        # p = -C g + beta p  with  beta = max(0, <g - g_old, C g> / <g_old, C g_old>)
        beta = ((slope - dots(old_gradient, steepest)) / old_slope.clamp_min(tiny(slope))).clamp_min(0)
        direction = torch.addcmul(steepest, direction, column(-beta, steepest)).neg_()
        along = dots(direction, gradient)
        restart = (along >= 0) | stuck
        if restart.any():
            direction = torch.where(column(restart, direction), -steepest, direction)
            along = torch.where(restart, -slope, along)
        stalled, steepest_taken = stuck & steepest_taken, restart
        converged = (slope <= limit) | (progress.residual <= tolerance)
        ended = converged | stalled
        if ended.any():
            progress.end(stalled, "stalled")
            progress.end(converged, "converged")
            result[progress.running[ended]] = iterate.x[ended]
            kept = progress.keep(~ended)
            objective, preconditioner, iterate = objective.at(kept), preconditioner.at(kept), iterate.at(kept)
            gradient, direction, along = gradient[kept], direction[kept], along[kept]
            slope, limit, steepest_taken = slope[kept], limit[kept], steepest_taken[kept]
        if step == max_steps or not progress:
            break
        old_gradient, old_slope, old_value = gradient, slope, iterate.value
        iterate = _line_search(objective, iterate, direction, along)
        progress.spend()
        stuck = iterate.value >= old_value
        progress.record(iterate.violation / size[progress.running])
    result[progress.running] = iterate.x
    return progress.solution(result)


def _line_search(objective: Objective, start: Iterate, direction: Tensor, slope: Tensor) -> Iterate:
    """Return where along a direction the derivative all but vanishes; the start where no step lowers the objective."""
    # safeguarded Newton steps reach the minimum of a piecewise quadratic in a few steps, at no further product with W
    image = objective.operator.forward(direction)

    def move(length: Tensor) -> Iterate:
        x = torch.addcmul(start.x, direction, column(length, direction))
        return objective.evaluate(x, torch.addcmul(start.h, image, column(length, image)))

    length, low = torch.zeros_like(slope), torch.zeros_like(slope)
    high = torch.full_like(slope, torch.inf)
    first, iterate = slope.abs(), start
    for _ in range(NEWTON_STEPS):
        settled = slope.abs() <= SLOPE_TOLERANCE * first
        if settled.all():
            break
        # Newton on the derivative, bisection where it leaves the bracket [low, high]
        low = torch.where(slope <= 0, length, low)
        high = torch.where(slope > 0, length, high)
        newton = length - slope / objective.curvature(iterate, direction, image).clamp_min(tiny(slope))
        between = torch.where(high.isfinite(), (low + high) / 2, 2 * length + newton.abs())
        inside = (newton > low) & (newton < high) & newton.isfinite()
        length = torch.where(settled, length, torch.where(inside, newton, between))
        iterate = move(length)
        slope = objective.slope(iterate, direction, image)
    for backtrack in range(MAX_BACKTRACKS):
        raised = ~(iterate.value <= start.value)
        if not raised.any():
            break
        length = torch.where(raised, length / 4 if backtrack < MAX_BACKTRACKS - 1 else 0.0, length)
        iterate = move(length)
    return iterate
