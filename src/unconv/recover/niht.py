"""Normalised iterative hard thresholding: steps as long as the current support allows, and no parameter to tune."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.linalg import column, norms, tiny
from unconv.operators import LinearOperator
from unconv.recover.greedy import Iterate, pursue
from unconv.recover.iht import SparseRecovery, choose
from unconv.solvers.solution import Solution
from unconv.sparsity import SparsityModel

MARGIN = 0.01  # c of the acceptance test
SHRINK = 2 * (1 - MARGIN)  # kappa (1 - c)
SHORTEST = 40  # halvings of a step
FLAT = 1e-3  # slope on the support, relative to the whole slope, below which the support has no direction to offer


def niht(
    operator: LinearOperator,
    x: Tensor,
    model: SparsityModel,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> Solution[SparseRecovery]:
    """Normalised IHT: ``z = M(z + mu W (x - W^T z))`` (Blumensath and Davies 2010).

    The step size ``mu`` is the exact line search along the gradient on the current support. Where the support
    changes, the step is halved until it passes their acceptance test, which bounds it by
    ``0.99 ||z' - z||^2 / ||W^T (z' - z)||^2``; so for exact projections the residual never rises, whatever the scale
    of the operator.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces, given by its projection ``M``.
        tolerance: An input has converged once ``||x - W^T z|| <= tolerance * ||x||``.
        max_steps: Largest number of steps, at least 1.

    Returns:
        The best recoveries; ``history`` holds ``||x - W^T z|| / ||x||`` of the iterates. An input has stalled once its
        iterate no longer moves, or its best residual has not fallen by a millionth within ten steps.

    Raises:
        ValueError: If ``x`` is no finite batch of the operator's inputs, or ``max_steps`` is below 1.
    """

    def step(now: Iterate, active: Tensor) -> tuple[Iterate, Tensor]:
        following = normalised_step(operator, x, model, now, active)
        return following, norms(following.z - now.z) == 0

    return pursue(operator, x, model, step, tolerance=tolerance, max_steps=max_steps)


def normalised_step(operator: LinearOperator, x: Tensor, model: SparsityModel, now: Iterate, tested: Tensor) -> Iterate:
    """One gradient step and projection, with the step size of Blumensath and Davies (2010).

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces.
        now: Where the solver stands.
        tested: Inputs whose step has to pass the acceptance test. Shape ``(N,)``, bool.

    Returns:
        The next iterate.
    """
    gradient = operator.forward(now.residual)
    support = now.z != 0
    direction = gradient * support
    flat = norms(direction) <= FLAT * norms(gradient)
    if flat.any():
        # where the values already fit, the code itself; at z = 0, what the model would keep of the gradient
        usual = torch.where(column(support.flatten(1).any(1), gradient), now.z, model.project(gradient).dense())
        direction = torch.where(column(flat, gradient), usual, direction)
    curvature = norms(operator.adjoint(direction)).square()
    length = norms(direction).square() / curvature.clamp_min(tiny(curvature))
    code = model.project(now.z + column(length, gradient) * gradient)
    following = Iterate.of(operator, x, code)
    for _ in range(SHORTEST):
        moved = norms(following.z - now.z).square()
        image = norms(following.reconstruction - now.reconstruction).square()
        same = ((following.z != 0) == support).flatten(1).all(1)
        long = tested & ~same & (length * image > (1 - MARGIN) * moved)
        if not long.any():
            break
        length = torch.where(long, length / SHRINK, length)
        shorter = model.project(now.z + column(length, gradient) * gradient)
        following = Iterate.of(operator, x, choose(long, shorter, following.code))
    return following
