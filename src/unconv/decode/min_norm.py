"""The input of least norm that solves the equations a code leaves, by conjugate gradients (CGLS)."""

from __future__ import annotations

from torch import Tensor

from unconv.decode.linear_system import Equations
from unconv.solvers.cgls import cgls
from unconv.solvers.solution import Solution


def min_norm(system: Equations, *, tolerance: float = 1e-3, max_steps: int = 100) -> Solution[Tensor]:
    """Solve ``A x = target`` by CGLS from zero: all iterates are ``A^T y``, so the limit is of least norm.

    An input has converged once ``||A x - target|| <= tolerance ||target||``, or once ``||A^T (target - A x)||`` has
    fallen by the square of the tolerance, which is where contradictions end.
    """
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it counts the steps allowed, so it is at least 0")
    return cgls(system, system.target, tolerance=tolerance, slope_tolerance=tolerance**2, max_steps=max_steps)
