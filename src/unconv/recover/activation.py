"""Algorithm 2 of the paper: the sparse hidden activation behind a real input."""

from __future__ import annotations

from torch import Tensor

from unconv.operators import LinearOperator
from unconv.recover.fista import fista
from unconv.recover.iht import SparseRecovery
from unconv.solvers.solution import Solution, Status
from unconv.sparsity import SparsityModel


def activation_recovery(
    operator: LinearOperator,
    x: Tensor,
    model: SparsityModel,
    *,
    weight: float | Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Solution[SparseRecovery]:
    """Find a code in the model whose transposed convolution is near a real input (paper, Algorithm 2).

    (1) the minimiser of ``||x - W^T z||^2 / 2 + weight ||z||_1``; (2) its projection onto the model, with the switches
    of its own pooling (``M_known``); (3) the same minimisation with zeros wherever the projection has them. ``weight``
    is half of the paper's lambda. Arguments, ``history`` (that of (3)) and errors are those of ``fista``; an input has
    converged if both minimisations have.
    """
    # (1) z1 = argmin ||x - W^T z||^2 / 2 + weight ||z||_1
    first = fista(operator, x, weight=weight, tolerance=tolerance, max_steps=max_steps)
    # (2) its projection onto the model
    kept = model.project(first.value.code.dense())
    # (3) as (1), zero off the projection's support
    second = fista(operator, x, weight=weight, support=kept.support(), tolerance=tolerance, max_steps=max_steps)
    code = kept.with_values(second.value.code.dense())
    pairs = zip(first.status, second.status, strict=True)
    status: tuple[Status, ...] = tuple(after if before == "converged" else before for before, after in pairs)
    return Solution(SparseRecovery(code, second.value.reconstruction), second.history, status)
