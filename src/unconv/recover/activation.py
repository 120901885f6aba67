"""Algorithm 2 of the paper: the sparse hidden activation behind a real input."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.operators import LinearOperator
from unconv.recover.fista import default_weight, fista
from unconv.recover.iht import SparseRecovery
from unconv.solvers.progress import statuses
from unconv.solvers.solution import Solution
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
    of its own pooling (``M_known``); (3) the same minimisation with zeros wherever the projection has them.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces.
        weight: Half of the paper's lambda, the same in both minimisations; ``default_weight(operator, x)`` where
            ``None``.
        tolerance: A minimisation has converged once its duality gap is at most this times ``||x||^2 / 2``.
        max_steps: Largest number of steps of each minimisation, at least 1.

    Returns:
        The codes, with the switches of (2); ``history`` holds the relative duality gap of (3). An input has
        converged if both minimisations have.

    Raises:
        ValueError: If ``x`` is no finite batch of inputs, or ``weight`` or ``max_steps`` is out of range.
    """
    if weight is None:
        weight = default_weight(operator, x).clamp_min(1e-30)
    # (1) z1 = argmin ||x - W^T z||^2 / 2 + weight ||z||_1
    first = fista(operator, x, weight=weight, tolerance=tolerance, max_steps=max_steps)
    # (2) its projection onto the model
    kept = model.project(first.value.code.dense())
    # (3) as (1), zero off the projection's support
    second = fista(operator, x, weight=weight, support=kept.support(), tolerance=tolerance, max_steps=max_steps)
    pairs = zip(first.status, second.status, strict=True)
    converged = torch.tensor([a == b == "converged" for a, b in pairs], dtype=torch.bool)
    code = kept.with_values(second.value.code.dense())
    return Solution(SparseRecovery(code, second.value.reconstruction), second.history, statuses(converged))
