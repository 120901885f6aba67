"""Algorithm 1 of the paper, model-based iterative hard thresholding; one step of it is a layer of a CNN."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.errors import UsageError, check_whole
from unconv.linalg import column, relative_norm
from unconv.operators import LinearOperator, check_linear
from unconv.solvers.solution import Solution, statuses
from unconv.sparsity import Code, SparsityModel


@dataclass(frozen=True)
class SparseRecovery:
    """A sparse code, and what the transposed operator makes of it."""

    code: Code  # the code z
    reconstruction: Tensor  # W^T z; shape (N, *input_shape)


def iht(
    operator: LinearOperator,
    x: Tensor,
    model: SparsityModel,
    *,
    steps: int = 1,
    step_size: float = 1.0,
    tolerance: float = 0.0,
) -> Solution[SparseRecovery]:
    """Find a code ``z`` in the model with ``W^T z`` near ``x`` (paper, Algorithm 1 with ``Phi = W^T``).

    From ``z = 0`` and ``d = x`` repeat ``b = z + step_size * W d``, ``z = M(b)``, ``d = x - W^T z``. The first step
    is the feed-forward layer (convolution, pooling) followed by its decoder (unpooling, transposed
    convolution); ``steps=1`` is what the paper calls one-step IHT.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces, given by its projection ``M``.
        steps: Number of steps, at least 1.
        step_size: Factor of ``W d``; the algorithm converges where it is below ``1 / ||W||^2``.
        tolerance: An input has converged once ``||x - W^T z|| <= tolerance * ||x||``; the loop ends when all have.

    Returns:
        The best recovery of each input; ``history`` holds ``||x - W^T z|| / ||x||`` of the iterates,
        which need not fall.

    Raises:
        UsageError: If the operator is no linear operator, the model none of sparsity, ``x`` no batch of the operator's
            inputs, ``steps`` below 1, or ``step_size`` not finite.

    Example:
        >>> import torch
        >>> from unconv import ConvOperator, Pooled
        >>> from unconv.recover import iht
        >>> W = ConvOperator(torch.eye(4).reshape(4, 4, 1), (4, 2))  # orthonormal rows: one step is enough
        >>> x = W.adjoint(torch.tensor([[[5.0, 0.0], [0.0, 0.0], [0.0, -2.0], [0.0, 0.0]]]))
        >>> iht(W, x, Pooled("map", k=2))
        Solution(1 converged; 1 steps, worst residual 0)
    """
    check_batch(operator, x)
    check_model(model)
    check_whole(steps=steps)
    if not math.isfinite(step_size):
        raise UsageError(f"step_size is {step_size}; expected a finite number, below 1 / ||W||^2 to converge")
    code = model.project(operator.forward(x if step_size == 1.0 else step_size * x))
    z = code.dense()
    reconstruction = operator.adjoint(z)
    residual = x - reconstruction
    history = [torch.ones(len(x), dtype=x.dtype, device=x.device), relative_norm(residual, x)]
    best, best_code, best_reconstruction = history[1], code, reconstruction
    for _ in range(steps - 1):
        if tolerance and bool((best <= tolerance).all()):
            break
        # z = M(z + mu W (x - W^T z))
        code = model.project(z.add(operator.forward(residual), alpha=step_size))
        z = code.dense()
        reconstruction = operator.adjoint(z)
        residual = x - reconstruction
        history.append(relative_norm(residual, x))
        better = history[-1] < best
        if x.device.type == "cpu" and better.all():  # the usual case; to ask costs a GPU more than to choose
            best_code, best_reconstruction = code, reconstruction
        else:
            best_code = code.where(better, best_code)
            best_reconstruction = torch.where(column(better, x), reconstruction, best_reconstruction)
        best = torch.minimum(best, history[-1])
    return Solution(SparseRecovery(best_code, best_reconstruction), torch.stack(history), statuses(best <= tolerance))


def check_batch(operator: LinearOperator, x: Tensor) -> None:
    """Refuse what is no linear operator, or no batch of its inputs in its floating-point type (``UsageError``)."""
    check_linear(operator)
    if not isinstance(x, Tensor):
        raise UsageError(f"input is a {type(x).__name__}; expected a tensor")
    if tuple(x.shape[1:]) != tuple(operator.input_shape):
        expected = ", ".join(map(str, operator.input_shape))
        raise UsageError(f"input has shape {tuple(x.shape)}; expected (N, {expected})")
    dtype = getattr(operator, "dtype", x.dtype)
    if x.dtype != dtype:
        raise UsageError(f"input has dtype {x.dtype}, the operator {dtype}; give x.to({dtype}), or use operator.to")


def check_model(model: SparsityModel) -> None:
    """Refuse what is no sparsity model (``UsageError``)."""
    if not hasattr(model, "project"):
        raise UsageError(f"model is a {type(model).__name__}; give a sparsity model, such as Pooled(2, k=10)")
