"""Preconditioned conjugate gradients on a batch, each input with its own system and its own end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unconv.linalg import column, dots, tiny

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(
    product: Product, right: Tensor, preconditioner: Product, *, tolerance: Tensor, max_steps: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Solve ``A d = b`` from zero, ``A`` symmetric and positive semi-definite (Hestenes and Stiefel 1952)."""
    # ``preconditioner``: products with M, about the inverse of A. An input is done once the M norm of its residual has
    # fallen by ``tolerance``, shape (N,), or its ``max_steps`` products are made. Returned: solutions, products made.
    solution = torch.zeros_like(right)
    residual = right
    direction = steepest = preconditioner(residual)
    slope = start = dots(residual, steepest)
    steps = torch.zeros(len(right), dtype=torch.int64, device=right.device)
    while True:
        running = (slope > tolerance**2 * start) & (steps < max_steps)
        if not running.any():
            return solution, steps
        image = product(direction)
        steps += running
        curvature = dots(direction, image)
        # a direction of no curvature ends its input: its slope is set to 0
        running = running & (curvature > 0)
        length = torch.where(running, slope / curvature.clamp_min(tiny(slope)), 0.0)
        solution = solution + column(length, solution) * direction
        residual = residual - column(length, residual) * image
        steepest = preconditioner(residual)
        new_slope = dots(residual, steepest)
        turn = torch.where(running, new_slope / slope.clamp_min(tiny(slope)), 0.0)
        direction = steepest + column(turn, direction) * direction
        slope = torch.where(running, new_slope, 0.0)
