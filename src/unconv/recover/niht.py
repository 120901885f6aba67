"""Normalised iterative hard thresholding: steps as long as the current support allows, and no parameter to tune."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.linalg import column, norms, tiny
from unconv.operators import LinearOperator
from unconv.recover.greedy import Iterate, run_greedy
from unconv.recover.iht import SparseRecovery
from unconv.solvers.solution import Solution
from unconv.sparsity import SparsityModel

MARGIN = 0.01  # c of the acceptance test
SHRINK = 2 * (1 - MARGIN)  # kappa (1 - c)
SHORTEST = 40  # halvings of a step
FLAT = 1e-3  # slope on the support, relative to the whole slope, below which the support has no direction to offer


def niht(
    operator: LinearOperator, x: Tensor, model: SparsityModel, *, tolerance: float = 1e-6, max_steps: int = 300
) -> Solution[SparseRecovery]:
    """Normalised IHT: ``z = M(z + mu W (x - W^T z))`` (Blumensath and Davies 2010).

    The step size ``mu`` is the exact line search along the gradient on the current support. Where the support changes,
    the step is halved until it passes their acceptance test, ``mu <= 0.99 ||z' - z||^2 / ||W^T (z' - z)||^2``; so for
    exact projections the residual never rises, whatever the scale of the operator.

    ``x``: inputs, shape ``(N, *input_shape)``. An input has converged once ``||x - W^T z|| <= tolerance * ||x||``, and
    stalled once its iterate no longer moves, or its best residual has not fallen by a millionth within ten steps.
    Returned are the best recoveries; ``history`` holds ``||x - W^T z|| / ||x||`` of the iterates. UsageError if ``x``
    is no finite batch of the operator's inputs, or ``max_steps`` is below 1.
    """

    def step(current: Iterate, running: Tensor) -> tuple[Iterate, Tensor]:
        next_ = normalised_step(operator, x, model, current, running)
        return next_, norms(next_.z - current.z) == 0

    return run_greedy(operator, x, model, step, tolerance=tolerance, max_steps=max_steps)


def normalised_step(
    operator: LinearOperator, x: Tensor, model: SparsityModel, current: Iterate, tested: Tensor
) -> Iterate:
    """Return ``M(z + mu W (x - W^T z))``, the inputs of ``tested`` (shape ``(N,)``, bool) with an accepted ``mu``."""
    gradient = operator.forward(current.residual)
    support = current.z != 0
    direction = gradient * support
    flat = norms(direction) <= FLAT * norms(gradient)
    if flat.any():
        # where the values already fit, the code itself; at z = 0, what the model would keep of the gradient
        usual = torch.where(column(support.flatten(1).any(1), gradient), current.z, model.project(gradient).dense())
        direction = torch.where(column(flat, gradient), usual, direction)
    # mu = ||d||^2 / ||W^T d||^2, the exact line search along the direction d
    curvature = norms(operator.adjoint(direction)).square()
    length = norms(direction).square() / curvature.clamp_min(tiny(curvature))
    code = model.project(current.z + column(length, gradient) * gradient)
    next_ = Iterate.of(operator, x, code)
    for _ in range(SHORTEST):
        moved = norms(next_.z - current.z).square()
        image = norms(next_.reconstruction - current.reconstruction).square()
        same = ((next_.z != 0) == support).flatten(1).all(1)
        long = tested & ~same & (length * image > (1 - MARGIN) * moved)
        if not long.any():
            break
        length = torch.where(long, length / SHRINK, length)
        shorter = model.project(current.z + column(length, gradient) * gradient)
        next_ = Iterate.of(operator, x, shorter.where(long, next_.code))
    return next_
