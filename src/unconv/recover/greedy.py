"""What the greedy solvers share: their loop, the fit of values on a support, and the check of what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.errors import UsageError, check_whole
from unconv.linalg import column, relative_norm
from unconv.operators import LinearOperator
from unconv.recover.iht import SparseRecovery, check_batch, check_model
from unconv.solvers.cgls import cgls
from unconv.solvers.solution import Solution, statuses
from unconv.sparsity import Code, SparsityModel

PATIENCE = 10  # steps within which the best residual has to fall,
LEAST_FALL = 1e-6  # by this share of it; an input whose residual does not has stalled
FIT_STEPS = 60  # most conjugate-gradient steps of one least-squares fit


@dataclass(frozen=True)
class Iterate:
    """A code ``z``, the same dense, ``W^T z`` and ``x - W^T z``, of every input of a batch."""

    code: Code
    z: Tensor
    reconstruction: Tensor
    residual: Tensor

    @staticmethod
    def of(operator: LinearOperator, x: Tensor, code: Code) -> Iterate:
        """Return the iterate of a code. ``x``: inputs, shape ``(N, *input_shape)``."""
        z = code.dense()
        reconstruction = operator.adjoint(z)
        return Iterate(code, z, reconstruction, x - reconstruction)

    def where(self, mask: Tensor, other: Iterate) -> Iterate:
        """Return this iterate for the inputs of a mask, another for the rest. ``mask``: shape ``(N,)``, bool."""
        if mask.all():
            return self
        pairs = ((self.z, other.z), (self.reconstruction, other.reconstruction), (self.residual, other.residual))
        parts = (torch.where(column(mask, a), a, b) for a, b in pairs)
        return Iterate(self.code.where(mask, other.code), *parts)


# from the current iterate and which inputs are still under way (shape (N,), bool) to the next iterate, and which
# inputs no further step would move (shape (N,), bool)
Step = Callable[[Iterate, Tensor], tuple[Iterate, Tensor]]


def run_greedy(
    operator: LinearOperator, x: Tensor, model: SparsityModel, step: Step, *, tolerance: float, max_steps: int
) -> Solution[SparseRecovery]:
    """Repeat a step from ``z = 0``, keep each input's best iterate, and let each input stop by itself."""
    check_input(operator, x, max_steps)
    check_model(model)
    current = best = Iterate.of(operator, x, model.project(x.new_zeros(len(x), *operator.output_shape)))
    history = [relative_norm(x, x)]
    least = [torch.full_like(history[0], torch.inf)]
    converged = history[0] <= tolerance
    stalled = torch.zeros_like(converged)
    for _ in range(max_steps):
        running = ~(converged | stalled)
        if not running.any():
            break
        next_, fixed = step(current, running)
        current = next_.where(running, current)
        history.append(torch.where(running, relative_norm(current.residual, x), history[-1]))
        better = running & (history[-1] < least[-1])
        best = current.where(better, best)
        least.append(torch.where(better, history[-1], least[-1]))
        converged = converged | (running & (least[-1] <= tolerance))
        if len(least) > PATIENCE + 1:
            fixed = fixed | (least[-1] > (1 - LEAST_FALL) * least[-1 - PATIENCE])
        stalled = stalled | (running & fixed & ~converged)
    recovery = SparseRecovery(best.code, best.reconstruction)
    return Solution(recovery, torch.stack(history), statuses(converged, stalled))


def fit(
    operator: LinearOperator, x: Tensor, support: Tensor, start: Tensor, *, skip: Tensor, tolerance: float
) -> Tensor:
    """Return values on a support that bring ``W^T z`` nearest to ``x``, ten times as accurate as the solver."""
    accuracy = 0.1 * tolerance
    slope = max(accuracy, 10 * torch.finfo(x.dtype).eps)
    system = _Columns(operator, support)
    fitted = cgls(system, x, start=start, skip=skip, tolerance=accuracy, slope_tolerance=slope, max_steps=FIT_STEPS)
    return fitted.value


@dataclass(frozen=True)
class _Columns:
    """``W^T`` with all columns zeroed but those of a support, which differs from input to input."""

    operator: LinearOperator
    support: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return inputs of codes. Shape ``(N, *output_shape)`` to ``(N, *input_shape)``."""
        return self.operator.adjoint(x * self.support)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return codes of inputs. Shape ``(N, *input_shape)`` to ``(N, *output_shape)``."""
        return self.operator.forward(y) * self.support


def check_input(operator: LinearOperator, x: Tensor, max_steps: int) -> None:
    """Refuse what ``check_batch`` does, NaN and infinities, and no steps (``UsageError``)."""
    check_batch(operator, x)
    if not torch.isfinite(x).all():
        raise UsageError("the input holds NaN or infinite values; give a finite one")
    check_whole(max_steps=max_steps)
