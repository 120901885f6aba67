"""What the solvers ask of a linear map, what every one returns, and which inputs of a batch are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
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


def total_passes(parts: Sequence[Solution[Any]]) -> tuple[int, ...]:
    """Return the passes of each input over solutions that follow each other; empty where they are not counted."""
    return tuple(map(sum, zip(*(part.passes for part in parts), strict=True)))


def statuses(converged: Tensor, stalled: Tensor | None = None) -> tuple[Status, ...]:
    """Return the status of each input, converged before stalled before out of steps. Two masks of shape ``(N,)``."""
    stuck = torch.zeros_like(converged) if stalled is None else stalled
    return tuple(
        "converged" if done else "stalled" if stopped else "max_steps"
        for done, stopped in zip(converged.tolist(), stuck.tolist(), strict=True)
    )


class BatchProgress:
    """Which inputs of a batch still run, how the others ended, how far each came and what it has cost.

    A solver keeps the data of the running inputs only: ``running`` are their places in the batch, and after ``keep``
    it selects those that go on. ``passes`` counts passes, one forward and one backward each.
    """

    def __init__(self, residual: Tensor) -> None:
        """Start with all inputs running."""
        self.running = torch.arange(len(residual), device=residual.device)
        self.passes = torch.zeros(len(residual), dtype=torch.int64, device=residual.device)
        self.history = [residual]
        self._status: list[Status] = ["max_steps"] * len(residual)

    def __bool__(self) -> bool:
        """Whether any input still runs."""
        return len(self.running) > 0

    @property
    def residual(self) -> Tensor:
        """Last relative residual of the running inputs. Shape ``(R,)``."""
        return self.history[-1][self.running]

    def end(self, ended: Tensor, status: Status) -> None:
        """Note how some of the running inputs ended; ``keep`` drops them. ``ended``: shape ``(R,)``, bool."""
        for index in self.running[ended].tolist():
            self._status[index] = status

    def keep(self, going_on: Tensor) -> Tensor:
        """Go on with some of the running inputs; return their places among those so far, int64."""
        kept = going_on.nonzero().flatten()
        self.running = self.running[kept]
        return kept

    def spend(self) -> None:
        """Count a pass of the running inputs."""
        self.passes[self.running] += 1

    def record(self, residual: Tensor) -> None:
        """Append the relative residuals of the running inputs; those that ended repeat their last one."""
        self.history.append(self.history[-1].clone())
        self.history[-1][self.running] = residual

    def solution(self, value: T) -> Solution[T]:
        """Return the result of the batch."""
        return Solution(value, torch.stack(self.history), tuple(self._status), tuple(self.passes.tolist()))
