"""The input of least norm that solves the equations a code leaves, by conjugate gradients (CGLS)."""

from __future__ import annotations

from torch import Tensor

from unconv.decode.linear_system import Equations
from unconv.solvers.cgls import cgls
from unconv.solvers.solution import Solution


def min_norm(system: Equations, *, tolerance: float = 1e-3, max_steps: int = 100) -> Solution[Tensor]:
    """Solve ``A x = target`` from ``x = 0`` by CGLS (Hestenes and Stiefel 1952; Björck 1996, section 7.4).

    From zero, all iterates lie in the range of ``A^T``, so the limit is the solution of least norm, or the
    least-squares solution of least norm where the equations contradict each other.

    Args:
        system: The equations of ``N`` inputs.
        tolerance: An input has converged once ``||A x - target|| <= tolerance * ||target||``, or once
            ``||A^T (target - A x)||`` has fallen by the square of it, which is where contradictions end.
        max_steps: Largest number of steps; each costs one ``A`` and one ``A^T``.

    Returns:
        Inputs, shape ``(N, *input_shape)``; ``history`` holds ``||A x - target|| / ||target||``.

    Raises:
        ValueError: If ``max_steps`` is negative.
    """
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it counts the steps allowed, so it is at least 0")
    return cgls(system, system.target, tolerance=tolerance, slope_tolerance=tolerance**2, max_steps=max_steps)
