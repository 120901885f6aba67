"""Preconditioned non-linear conjugate gradients for violations of statements about ``W x``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.decode.constraints import Constraints
from unconv.decode.priors import Metric, Penalty
from unconv.linalg import column, dots, tiny
from unconv.operators import LinearOperator
from unconv.solvers.solution import Solution, Status

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
    said: Constraints
    negativity: float = 0.0
    penalty: Penalty | None = None
    weight: Tensor | None = None

    def at(self, rows: Tensor) -> Problem:
        """The problem of some of the inputs. ``rows``: indices, int64."""
        return replace(self, said=self.said.at(rows), weight=None if self.weight is None else self.weight[rows])

    def move(
        self, x: Tensor, h: Tensor, direction: Tensor, image: Tensor, length: Tensor, out: Point | None = None
    ) -> tuple[Point, Tensor]:
        """The objective at ``x + length * direction``.

        Args:
            x: Inputs. Shape ``(N, *input_shape)``.
            h: ``W x``.
            direction: Of the shape of ``x``.
            image: ``W direction``.
            length: Shape ``(N,)``.
            out: A point that nobody needs any more, whose tensors are written over.

        Returns:
            The point, and the derivative along the direction there, shape ``(N,)``.
        """
        moved = self.said.move(h, image, length, None if out is None else (out.h, out.pull))
        at = torch.addcmul(x, direction, column(length, x), out=None if out is None else out.x)
        squared, slope, negative = moved.squared, moved.slope, None
        if self.negativity:
            negative = torch.clamp(at, max=0, out=None if out is None else out.negative)
            squared = squared + self.negativity * dots(negative, negative)
            slope = slope + self.negativity * dots(negative, direction)
        value = squared / 2
        if self.penalty is not None and self.weight is not None:
            weight = self.weight.flatten()
            value = value + weight * self.penalty.value(at)
            slope = slope + weight * dots(self.penalty.gradient(at), direction)
        return Point(at, moved.h, moved.gradient, negative, squared.sqrt(), value), slope

    def gradient(self, point: Point) -> Tensor:
        """Gradient of the objective; costs one ``W^T``. Of the shape of ``point.x``."""
        result = self.operator.adjoint(point.pull)
        if point.negative is not None:
            result = result.add_(point.negative, alpha=self.negativity)
        if self.penalty is not None and self.weight is not None:
            result = result + self.weight * self.penalty.gradient(point.x)
        return result

    def curvature(self, point: Point, direction: Tensor, image: Tensor, out: Point | None = None) -> Tensor:
        """Second derivative along a direction; ``image`` is ``W`` times it, ``out`` as in ``move``. Shape ``(N,)``."""
        curvature = self.said.bend(point.pull, image, point.h, None if out is None else out.pull)
        if point.negative is not None:
            below = torch.sign(point.negative, out=None if out is None else out.negative).mul_(direction)
            curvature = curvature + self.negativity * dots(below, below)
        if self.penalty is not None and self.weight is not None:
            curvature = curvature + self.weight.flatten() * self.penalty.curvature(point.x, direction)
        return curvature


@dataclass(frozen=True)
class Point:
    """Inputs, and what is known of the objective there.

    Attributes:
        x: Shape ``(N, *input_shape)``.
        h: ``W x``.
        pull: Gradient of ``f`` at ``h``, of its shape.
        negative: ``min(x, 0)``, or ``None`` where the input may be negative.
        violation: Norm of all violations. Shape ``(N,)``.
        value: The objective. Shape ``(N,)``.
    """

    x: Tensor
    h: Tensor
    pull: Tensor
    negative: Tensor | None
    violation: Tensor
    value: Tensor

    def at(self, rows: Tensor) -> Point:
        """Some of the inputs. ``rows``: indices, int64."""
        negative = None if self.negative is None else self.negative[rows]
        parts = (part[rows] for part in (self.violation, self.value))
        return Point(self.x[rows], self.h[rows], self.pull[rows], negative, *parts)


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
    h = problem.operator.forward(start)
    point, _ = problem.move(start, h, torch.zeros_like(start), torch.zeros_like(h), torch.zeros_like(size))
    history = [point.violation / size]
    limit = direction = old_gradient = old_slope = torch.zeros(0)
    stuck = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    steepest_taken = stalled = stuck
    spare: Point | None = None
    for step in range(max_steps + 1):
        gradient = problem.gradient(point)
        steepest = metric.apply(gradient)
        slope = dots(gradient, steepest)
        if step == 0:
            limit = tolerance**4 * slope
            direction, along = -steepest, -slope
            steepest_taken = ~stuck
        else:
            beta = ((slope - dots(old_gradient, steepest)) / old_slope.clamp_min(tiny(slope))).clamp_min(0)
            direction = torch.addcmul(steepest, direction, column(-beta, steepest)).neg_()
            along = dots(direction, gradient)
            restart = (along >= 0) | stuck
            if restart.any():
                direction = torch.where(column(restart, direction), -steepest, direction)
                along = torch.where(restart, -slope, along)
            stalled = stuck & steepest_taken
            steepest_taken = restart
        met = slope <= limit
        if problem.penalty is None:
            met = met | (history[-1][rows] <= tolerance)
        ended = met | stalled
        if ended.any():
            for row, converged in zip(rows[ended].tolist(), met[ended].tolist()):
                status[row] = "converged" if converged else "stalled"
            result[rows[ended]] = point.x[ended]
            kept = (~ended).nonzero().flatten()
            rows, problem, metric, point = rows[kept], problem.at(kept), metric.at(kept), point.at(kept)
            gradient, direction, along = gradient[kept], direction[kept], along[kept]
            slope, limit, steepest_taken = slope[kept], limit[kept], steepest_taken[kept]
            spare = None
        if step == max_steps or not len(rows):
            break
        old_gradient, old_slope = gradient, slope
        image = problem.operator.forward(direction)
        old = point
        point = _line_search(problem, old, direction, image, along, spare)
        stuck = point.value >= old.value
        spare = None if point is old else old
        history.append(history[-1].clone())
        history[-1][rows] = point.violation / size[rows]
    result[rows] = point.x
    return Solution(result, torch.stack(history), tuple(status))


def _line_search(
    problem: Problem, start: Point, direction: Tensor, image: Tensor, slope: Tensor, spare: Point | None
) -> Point:
    """Where along a direction the derivative all but vanishes; no step where none lowers the objective.

    Args:
        problem: The problem.
        start: Where the line begins.
        direction: Its direction.
        image: ``W`` times it.
        slope: The derivative at the start.
        spare: A point that is written over, if there is one.

    Returns:
        The new point.
    """
    length = torch.zeros_like(slope)
    low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    first, point = slope.abs(), start
    for _ in range(LINE_STEPS):
        settled = slope.abs() <= LINE_TOLERANCE * first
        if settled.all():
            break
        low = torch.where(slope <= 0, length, low)
        high = torch.where(slope > 0, length, high)
        curvature = problem.curvature(point, direction, image, spare if point is start else None)
        newton = length - slope / curvature.clamp_min(tiny(slope))
        between = torch.where(high.isfinite(), (low + high) / 2, 2 * length + newton.abs())
        inside = (newton > low) & (newton < high) & newton.isfinite()
        length = torch.where(settled, length, torch.where(inside, newton, between))
        point, slope = problem.move(start.x, start.h, direction, image, length, spare if point is start else point)
    for halving in range(HALVINGS):
        raised = ~(point.value <= start.value)
        if not raised.any():
            break
        length = torch.where(raised, length / 4 if halving < HALVINGS - 1 else 0.0, length)
        point, _ = problem.move(start.x, start.h, direction, image, length, spare if point is start else point)
    return point
