"""The input of least norm that solves the equations a code leaves, by conjugate gradients (CGLS)."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.batched import column, norms, tiny
from unconv.decode.equations import Equations
from unconv.solution import Solution, Status


def min_norm(system: Equations, *, tolerance: float = 1e-3, max_steps: int = 100) -> Solution[Tensor]:
    """Solve ``A x = target`` from ``x = 0`` by CGLS (Hestenes and Stiefel 1952; Björck 1996, section 7.4).

    From zero, all iterates lie in the range of ``A^T``, so the limit is the solution of least norm, or the
    least-squares solution of least norm where the equations contradict each other. Every input of the batch
    has its own step lengths and stops by itself.

    Args:
        system: The equations of ``N`` inputs.
        tolerance: An input has converged once ``||A x - target|| <= tolerance * ||target||``, or once
            ``||A^T (target - A x)||`` has fallen by the square of it, which is where contradictions end.
        max_steps: Largest number of steps; each costs one ``A`` and one ``A^T``.

    Returns:
        Inputs, shape ``(N, *input_shape)``; ``history`` holds ``||A x - target|| / ||target||``.
    """
    residual = system.target
    gradient = system.adjoint(residual)
    x = torch.zeros_like(gradient)
    direction = gradient
    size = norms(residual)
    slope = start = norms(gradient)
    history = [(size > 0).to(size.dtype)]
    converged = (size == 0) | (slope == 0)
    for _ in range(max_steps):
        if converged.all():
            break
        image = system.forward(direction)
        length = torch.where(converged, 0.0, slope**2 / norms(image).square().clamp_min(tiny(slope)))
        x = x + column(length, x) * direction
        residual = residual - column(length, residual) * image
        gradient = system.adjoint(residual)
        new_slope = norms(gradient)
        history.append(norms(residual) / size.clamp_min(tiny(size)))
        converged = converged | (history[-1] <= tolerance) | (new_slope <= tolerance**2 * start)
        direction = gradient + column((new_slope / slope.clamp_min(tiny(slope))).square(), x) * direction
        slope = new_slope
    status: tuple[Status, ...] = tuple("converged" if done else "max_steps" for done in converged.tolist())
    return Solution(x, torch.stack(history), status)
