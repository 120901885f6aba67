"""What the solvers ask of a linear map, and what every one returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")
Status = Literal["converged", "max_steps", "stalled", "constant"]


class System(Protocol):
    """A linear map ``A`` that may differ from input to input of one batch."""

    def forward(self, x: Tensor, /) -> Tensor:
        """Return ``A x``. Shape ``(N, *shape of x)`` to ``(N, *shape of the target)``."""
        ...

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Return ``A^T y``. Shape ``(N, *shape of the target)`` to ``(N, *shape of x)``."""
        ...


@dataclass(frozen=True)
class Solution(Generic[T]):
    """The result of an iterative solver on a batch.

    Attributes:
        value: What was sought, the best iterate of each input.
        history: Relative residual before the first step and after each one. Shape ``(steps + 1, N)``; an
            input that stopped early repeats its last residual. The solver says which residual it is.
        status: Per input: ``"converged"`` (its stopping rule was met), ``"max_steps"`` (steps or passes ran out),
            ``"stalled"`` (no step would have lowered the objective) or ``"constant"`` (the target is zero or one
            number everywhere and says nothing; the value is the start).
        passes: Forward and backward passes made for each input, where the solver counts them.
    """

    value: T
    history: Tensor
    status: tuple[Status, ...]
    passes: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return len(self.history) - 1

    @property
    def residual(self) -> Tensor:
        """Relative residual of each input's best iterate, the start not counted. Shape ``(N,)``."""
        return self.history[1:].amin(0) if self.steps else self.history[0]

    def __repr__(self) -> str:
        ended = ", ".join(f"{self.status.count(s)} {s}" for s in dict.fromkeys(self.status))
        return f"Solution({ended}; {self.steps} steps, worst residual {self.residual.max().item():.3g})"
