"""Least squares by conjugate gradients (CGLS) on a batch, each input with its own system and its own end."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.linalg import column, norms, tiny
from unconv.solvers.solution import Solution, System, statuses


def cgls(
    system: System,
    target: Tensor,
    *,
    start: Tensor | None = None,
    skip: Tensor | None = None,
    tolerance: float,
    slope_tolerance: float,
    max_steps: int,
) -> Solution[Tensor]:
    """Minimise ``||A x - target||`` by CGLS (Hestenes and Stiefel 1952; Björck 1996, section 7.4).

    From zero the limit is the minimiser of least norm. Each input stops by itself, once ``||A x - target|| <= tolerance
    ||target||`` or ``||A^T (target - A x)|| <= slope_tolerance ||A^T target||``; those of ``skip``, shape ``(N,)``,
    bool, keep their start. ``history`` holds ``||A x - target|| / ||target||``.
    """
    gradient = system.adjoint(target)
    size, limit = norms(target), slope_tolerance * norms(gradient)
    if start is None:
        x, residual = torch.zeros_like(gradient), target
    else:
        x, residual = start, target - system.forward(start)
        gradient = system.adjoint(residual)
    direction, slope = gradient, norms(gradient)
    history = [norms(residual) / size.clamp_min(tiny(size))]
    converged = (norms(residual) <= tolerance * size) | (slope <= limit)
    if skip is not None:
        converged = converged | skip
    passes = torch.zeros_like(converged, dtype=torch.int64)
    for _ in range(max_steps):
        if converged.all():
            break
        passes += ~converged
        # x += alpha p,  r -= alpha A p  with  alpha = ||A^T r||^2 / ||A p||^2
        image = system.forward(direction)
        length = torch.where(converged, 0.0, slope**2 / norms(image).square().clamp_min(tiny(slope)))
        x = x + column(length, x) * direction
        residual = residual - column(length, residual) * image
        # p = A^T r + beta p  with  beta = ||A^T r||^2 / ||A^T r_old||^2
        gradient = system.adjoint(residual)
        new_slope = norms(gradient)
        history.append(norms(residual) / size.clamp_min(tiny(size)))
        converged = converged | (history[-1] <= tolerance) | (new_slope <= limit)
        direction = gradient + column((new_slope / slope.clamp_min(tiny(slope))).square(), x) * direction
        slope = new_slope
    return Solution(x, torch.stack(history), statuses(converged), tuple(passes.tolist()))
