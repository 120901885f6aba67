"""Preconditioned non-linear conjugate gradients for violations of statements about ``W x``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.batched import column, norms, tiny
from unconv.decode.priors import Metric, Penalty
from unconv.decode.statements import Statements
from unconv.operators import LinearOperator
from unconv.solution import Solution, Status

LINE_STEPS = 5
LINE_TOLERANCE = 0.1
HALVINGS = 12


@dataclass(frozen=True)
class Problem:
    """The objective ``f(W x) + negativity / 2 * ||min(x, 0)||^2 + weight * penalty(x)`` of each input.

    Attributes:
        operator: The map ``W``.
        said: The statements about ``W x``, which give ``f``.
        negativity: Weight of negative entries; 0 where the input may be negative.
        penalty: A prior, or ``None``.
        weight: Its weight. Shape ``(N, 1, ..., 1)``.
    """

    operator: LinearOperator
    said: Statements
    negativity: float = 0.0
    penalty: Penalty | None = None
    weight: Tensor | None = None

    def at(self, rows: Tensor) -> Problem:
        """The problem of some of the inputs. ``rows``: indices, int64."""
        return replace(self, said=self.said.at(rows), weight=None if self.weight is None else self.weight[rows])

    def violation(self, x: Tensor, h: Tensor) -> Tensor:
        """Norm of all violations. Shape ``(N,)``."""
        squared = norms(self.said.gap(h)).square()
        if self.negativity:
            squared = squared + self.negativity * norms(x.clamp_max(0)).square()
        return squared.sqrt()

    def value(self, x: Tensor, violation: Tensor) -> Tensor:
        """The objective, given the norm of the violations. Shape ``(N,)``."""
        value = violation.square() / 2
        if self.penalty is not None and self.weight is not None:
            value = value + self.weight.flatten() * self.penalty.value(x)
        return value

    def input_gradient(self, x: Tensor) -> Tensor | float:
        """Gradient of the terms in ``x`` itself. Of the shape of ``x``."""
        result = self.negativity * x.clamp_max(0) if self.negativity else 0.0
        if self.penalty is not None and self.weight is not None:
            result = result + self.weight * self.penalty.gradient(x)
        return result

    def slope_and_curvature(self, x: Tensor, h: Tensor, direction: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative along a direction whose image under ``W`` is known, each of shape ``(N,)``."""
        slope = _dot(self.said.gradient(h), image)
        curvature = self.said.curvature(h, image)
        if self.negativity:
            below = direction.masked_fill(x > 0, 0.0)
            slope = slope + self.negativity * _dot(x.clamp_max(0), direction)
            curvature = curvature + self.negativity * _dot(below, below)
        if self.penalty is not None and self.weight is not None:
            weight = self.weight.flatten()
            slope = slope + weight * _dot(self.penalty.gradient(x), direction)
            curvature = curvature + weight * self.penalty.curvature(x, direction)
        return slope, curvature


def descend(problem: Problem, start: Tensor, metric: Metric, *, tolerance: float, max_steps: int) -> Solution[Tensor]:
    """Minimise a problem from a start, by conjugate gradients (Polak and Ribière 1969, restarted) with a metric.

    Along each direction the derivative is followed by safeguarded Newton steps, which reach the minimum of a
    piecewise quadratic in a few steps at no further product with ``W``; a step that would raise the objective all
    the same (where it is not convex) is halved until it does not.

    Args:
        problem: The objective of ``N`` inputs.
        start: Where to begin. Shape ``(N, *input_shape)``.
        metric: The preconditioner; directions in which the objective is flat keep to its geometry from the start.
        tolerance: An input has converged once the norm of its violations is at most this, relative to the norm of the
            stated values, or once the preconditioned gradient has fallen to the square of it.
        max_steps: Largest number of steps.

    Returns:
        The last, which is the best, iterate of each input. ``history`` holds the relative norm of the violations.
    """
    size = problem.said.size().clamp_min(tiny(start))
    result = start.clone()
    status: list[Status] = ["max_steps"] * len(start)
    rows = torch.arange(len(start), device=start.device)
    x, h = result, problem.operator.forward(result)
    violation = problem.violation(x, h)
    value = problem.value(x, violation)
    history = [violation / size]
    limit = direction = old_gradient = old_slope = torch.zeros(0)
    stuck = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    steepest_taken = stalled = stuck
    for step in range(max_steps + 1):
        gradient = problem.operator.adjoint(problem.said.gradient(h)) + problem.input_gradient(x)
        steepest = metric.apply(gradient)
        slope = _dot(gradient, steepest)
        if step == 0:
            limit = tolerance**4 * slope
            direction = -steepest
            steepest_taken = ~stuck
        else:
            beta = ((slope - _dot(old_gradient, steepest)) / old_slope.clamp_min(tiny(slope))).clamp_min(0)
            direction = column(beta, x) * direction - steepest
            restart = (_dot(direction, gradient) >= 0) | stuck
            direction = torch.where(column(restart, x), -steepest, direction)
            stalled = stuck & steepest_taken
            steepest_taken = restart
        met = slope <= limit
        if problem.penalty is None:
            met = met | (history[-1][rows] <= tolerance)
        ended = met | stalled
        for row, converged in zip(rows[ended].tolist(), met[ended].tolist()):
            status[row] = "converged" if converged else "stalled"
        if ended.any():
            result[rows[ended]] = x[ended]
            kept = (~ended).nonzero().flatten()
            rows, problem, metric = rows[kept], problem.at(kept), metric.at(kept)
            x, h, value, gradient, direction = x[kept], h[kept], value[kept], gradient[kept], direction[kept]
            slope, limit, steepest_taken = slope[kept], limit[kept], steepest_taken[kept]
        if step == max_steps or not len(rows):
            break
        old_gradient, old_slope = gradient, slope
        image = problem.operator.forward(direction)
        old_value = value
        x, h, violation, value = _line_search(problem, x, h, direction, image, value)
        stuck = value >= old_value
        history.append(history[-1].clone())
        history[-1][rows] = violation / size[rows]
    result[rows] = x
    return Solution(result, torch.stack(history), tuple(status))


def _line_search(
    problem: Problem, x: Tensor, h: Tensor, direction: Tensor, image: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where along a direction the derivative all but vanishes; no step where none lowers the objective.

    Returns:
        The new ``x``, ``h = W x``, norm of the violations and objective.
    """
    length = torch.zeros_like(value)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    start: Tensor | None = None
    at, h_at = x, h
    for _ in range(LINE_STEPS):
        slope, curvature = problem.slope_and_curvature(at, h_at, direction, image)
        start = slope.abs() if start is None else start
        settled = slope.abs() <= LINE_TOLERANCE * start
        if settled.all():
            break
        low = torch.where(slope <= 0, length, low)
        high = torch.where(slope > 0, length, high)
        newton = length - slope / curvature.clamp_min(tiny(slope))
        between = torch.where(high.isfinite(), (low + high) / 2, 2 * length + newton.abs())
        inside = (newton > low) & (newton < high) & newton.isfinite()
        length = torch.where(settled, length, torch.where(inside, newton, between))
        at, h_at = x + column(length, x) * direction, h + column(length, h) * image
    violation = problem.violation(at, h_at)
    reached = problem.value(at, violation)
    for halving in range(HALVINGS):
        raised = ~(reached <= value)
        if not raised.any():
            break
        length = torch.where(raised, length / 4 if halving < HALVINGS - 1 else 0.0, length)
        at, h_at = x + column(length, x) * direction, h + column(length, h) * image
        violation = problem.violation(at, h_at)
        reached = problem.value(at, violation)
    return at, h_at, violation, reached


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
