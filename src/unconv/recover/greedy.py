"""What the greedy solvers share: their loop, the fit of values on a support, and the check of what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.linalg import column, relative_norm
from unconv.operators import LinearOperator
from unconv.recover.iht import SparseRecovery, choose
from unconv.solvers.cgls import cgls
from unconv.solvers.solution import Solution, Status
from unconv.sparsity import Code, SparsityModel

PATIENCE = 10  # steps within which the best residual has to fall
LEAST_FALL = 1e-6
FIT_STEPS = 60


@dataclass(frozen=True)
class Iterate:
    """Where a solver stands.

    Attributes:
        code: The code ``z``.
        z: The same, dense. Shape ``(N, *output_shape)``.
        reconstruction: ``W^T z``. Shape ``(N, *input_shape)``.
        residual: ``x - W^T z``. Shape ``(N, *input_shape)``.
    """

    code: Code
    z: Tensor
    reconstruction: Tensor
    residual: Tensor

    @staticmethod
    def of(operator: LinearOperator, x: Tensor, code: Code) -> Iterate:
        """The iterate of a code.

        Args:
            operator: The map ``W``.
            x: Inputs. Shape ``(N, *input_shape)``.
            code: Their codes.

        Returns:
            The iterate.
        """
        z = code.dense()
        reconstruction = operator.adjoint(z)
        return Iterate(code, z, reconstruction, x - reconstruction)


# from where a solver stands and which inputs are still under way (shape (N,), bool) to where it goes next, and which
# inputs no further step would move (shape (N,), bool)
Step = Callable[[Iterate, Tensor], tuple[Iterate, Tensor]]


def pursue(
    operator: LinearOperator, x: Tensor, model: SparsityModel, step: Step, *, tolerance: float, max_steps: int
) -> Solution[SparseRecovery]:
    """Repeat a solver's step from ``z = 0``, keep each input's best iterate, and let each input stop by itself.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces.
        step: One step of the solver.
        tolerance: An input has converged once ``||x - W^T z|| <= tolerance * ||x||``.
        max_steps: Largest number of steps, at least 1.

    Returns:
        The best recoveries; ``history`` holds ``||x - W^T z|| / ||x||`` of the iterates. An input has stalled once
        its iterate no longer moves, or its best residual has not fallen by a millionth within ten steps.

    Raises:
        ValueError: If ``x`` has another shape than the operator's inputs, is not finite, or ``max_steps`` is below 1.
    """
    check_input(operator, x, max_steps)
    now = Iterate.of(operator, x, zero_code(operator, x, model))
    best = now
    history = [relative_norm(x, x)]
    smallest = torch.full_like(history[0], torch.inf)
    record = [smallest]
    converged = history[0] <= tolerance
    stalled = torch.zeros_like(converged)
    for _ in range(max_steps):
        active = ~(converged | stalled)
        if not active.any():
            break
        following, fixed = step(now, active)
        now = pick(active, following, now)
        history.append(torch.where(active, relative_norm(now.residual, x), history[-1]))
        better = active & (history[-1] < smallest)
        best = pick(better, now, best)
        smallest = torch.where(better, history[-1], smallest)
        record.append(smallest)
        converged = converged | (active & (smallest <= tolerance))
        if len(record) > PATIENCE + 1:
            fixed = fixed | (smallest > (1 - LEAST_FALL) * record[-1 - PATIENCE])
        stalled = stalled | (active & fixed & ~converged)
    status: tuple[Status, ...] = tuple(
        "converged" if done else "stalled" if stuck else "max_steps"
        for done, stuck in zip(converged.tolist(), stalled.tolist(), strict=True)
    )
    return Solution(SparseRecovery(best.code, best.reconstruction), torch.stack(history), status)


def fit(
    operator: LinearOperator, x: Tensor, support: Tensor, start: Tensor, *, skip: Tensor, tolerance: float
) -> Tensor:
    """Values on a support that bring ``W^T z`` nearest to ``x``, by conjugate gradients.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        support: Places that may be non-zero. Shape ``(N, *output_shape)``, bool.
        start: Codes to start from, zero off the support. Shape ``(N, *output_shape)``.
        skip: Inputs that keep their start. Shape ``(N,)``, bool.
        tolerance: The solver's own; the fit is ten times as accurate, as far as the type allows.

    Returns:
        Shape ``(N, *output_shape)``.
    """
    accuracy = 0.1 * tolerance
    slope = max(accuracy, 10 * torch.finfo(x.dtype).eps)
    columns = Columns(operator, support)
    return cgls(
        columns, x, start=start, skip=skip, tolerance=accuracy, slope_tolerance=slope, max_steps=FIT_STEPS
    ).value


@dataclass(frozen=True)
class Columns:
    """``W^T`` with all columns zeroed but those of a support, which differs from input to input.

    Attributes:
        operator: The map ``W``.
        support: Shape ``(N, *output_shape)``, bool.
    """

    operator: LinearOperator
    support: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Codes to inputs. Shape ``(N, *output_shape)`` to ``(N, *input_shape)``."""
        return self.operator.adjoint(x * self.support)

    def adjoint(self, y: Tensor) -> Tensor:
        """Inputs to codes. Shape ``(N, *input_shape)`` to ``(N, *output_shape)``."""
        return self.operator.forward(y) * self.support


def refill(code: Code, z: Tensor) -> Code:
    """A code at the same places with other values.

    Args:
        code: Codes of ``N`` inputs.
        z: Dense codes that are zero off the support of ``code``. Shape ``(N, *code.shape)``.

    Returns:
        The code whose dense form is ``z``.
    """
    if code.switches is None:
        return replace(code, values=z)
    return replace(code, values=z.flatten(2).gather(2, code.switches.flatten(2)).reshape(code.values.shape))


def zero_code(operator: LinearOperator, x: Tensor, model: SparsityModel) -> Code:
    """The code ``z = 0`` of each input.

    Args:
        operator: The map ``W``.
        x: Inputs. Shape ``(N, *input_shape)``.
        model: The union of subspaces.

    Returns:
        The code.
    """
    return model.project(x.new_zeros(len(x), *operator.output_shape))


def check_input(operator: LinearOperator, x: Tensor, max_steps: int) -> None:
    """Refuse what no solver can work on.

    Args:
        operator: The map ``W``.
        x: Inputs.
        max_steps: Largest number of steps.

    Raises:
        ValueError: If ``x`` is no finite batch of the operator's inputs, or ``max_steps`` is below 1.
    """
    if tuple(x.shape[1:]) != tuple(operator.input_shape):
        expected = ", ".join(map(str, operator.input_shape))
        raise ValueError(f"input has shape {tuple(x.shape)}; expected (N, {expected})")
    if not torch.isfinite(x).all():
        raise ValueError("the input holds NaN or infinite values; give a finite one")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it counts the steps allowed, so it is at least 1")


def pick(first: Tensor, one: Iterate, other: Iterate) -> Iterate:
    """Per input, one of two iterates.

    Args:
        first: Which inputs take ``one``. Shape ``(N,)``, bool.
        one: An iterate.
        other: Another iterate of the same inputs.

    Returns:
        The mixed iterate.
    """
    if first.all():
        return one
    return Iterate(
        choose(first, one.code, other.code),
        *(
            torch.where(column(first, a), a, b)
            for a, b in [
                (one.z, other.z),
                (one.reconstruction, other.reconstruction),
                (one.residual, other.residual),
            ]
        ),
    )
