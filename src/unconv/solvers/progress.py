"""Which inputs of a batch are done: the one bookkeeping of all solvers."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from unconv.solvers.solution import Solution, Status

T = TypeVar("T")


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
