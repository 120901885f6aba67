"""Ridge regression from sums: the regularisation is chosen on samples that took no part, or one left out at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class NormalEquations:
    """Sums of ``[a 1]^T [a 1]``, ``[a 1]^T b`` and ``b^2`` over samples ``a`` with targets ``b``, in float64."""

    def __init__(self, unknowns: int, targets: int) -> None:
        """Start from nothing.

        Args:
            unknowns: Length of a sample.
            targets: Length of its target.
        """
        self.gram = torch.zeros(unknowns + 1, unknowns + 1, dtype=torch.float64)
        self.cross = torch.zeros(unknowns + 1, targets, dtype=torch.float64)
        self.squares = torch.zeros(targets, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of samples."""
        return round(self.gram[-1, -1].item())

    def add(self, samples: Tensor, targets: Tensor) -> None:
        """Add samples; products of one batch are taken in its own type.

        Args:
            samples: Shape ``(n, unknowns)``.
            targets: Shape ``(n, targets)``.
        """
        a = torch.cat([samples, samples.new_ones(len(samples), 1)], 1)
        self.gram += a.T @ a
        self.cross += a.T @ targets
        self.squares += targets.double().square().sum(0)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        total = NormalEquations(len(self.gram) - 1, self.cross.shape[1])
        total.gram = self.gram + other.gram
        total.cross = self.cross + other.cross
        total.squares = self.squares + other.squares
        return total

    def error(self, weight: Tensor) -> float:
        """Summed squared error of predictions ``[a 1] W``.

        Args:
            weight: Shape ``(unknowns + 1, targets)``.

        Returns:
            The error, not below 0.
        """
        # ||b - W^T a||^2 = b^2 - 2 <W, a b^T> + <W, a a^T W>
        error = self.squares.sum() - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()
        return max(error.item(), 0.0)


class RidgeSolver:
    """Solutions of centred normal equations, ``W = (A^T A + ridge * mean(diag A^T A) I)^-1 A^T b``."""

    def __init__(self, sums: NormalEquations) -> None:
        """Centre the equations.

        Args:
            sums: The equations; at least one sample.
        """
        n = sums.gram[-1, -1]
        self.mean, self.mean_target = sums.gram[-1, :-1] / n, sums.cross[-1] / n
        self.gram = sums.gram[:-1, :-1] - n * torch.outer(self.mean, self.mean)
        self.cross = sums.cross[:-1] - n * torch.outer(self.mean, self.mean_target)
        self.scale = self.gram.diagonal().mean().item()
        # what is left of a constant by rounding in float32 sums is nothing
        self.constant = not self.scale > 1e-9 * sums.gram.diagonal()[:-1].mean().item()

    def weight(self, ridge: float) -> Tensor:
        """The solution, intercepts in the last row.

        Args:
            ridge: In units of the mean diagonal.

        Returns:
            Shape ``(unknowns + 1, targets)``.
        """
        if self.constant:
            return torch.cat([torch.zeros_like(self.cross), self.mean_target[None]])
        regularised = self.gram + ridge * self.scale * torch.eye(len(self.gram), dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(regularised)
        if failed:
            return self.weight(10 * ridge)
        weight = torch.cholesky_solve(self.cross, factor)
        return torch.cat([weight, (self.mean_target - self.mean @ weight)[None]])


@dataclass(frozen=True)
class Chosen:
    """A regularisation and the weights of the samples that it was chosen with.

    Attributes:
        ridge: In units of the mean diagonal.
        weight: Of the fitted samples alone. Shape ``(unknowns + 1, targets)``.
    """

    ridge: float
    weight: Tensor


def choose_on_held_out(
    fitted: NormalEquations, held_out: NormalEquations, *, start: float, step: float, within: tuple[float, float]
) -> Chosen:
    """Walk from one regularisation to the neighbour that predicts held-out samples better, until none does.

    Args:
        fitted: Samples that weights are found from.
        held_out: Samples that they are judged by; without any, the start is taken.
        start: Where to begin.
        step: Ratio of neighbours.
        within: Least and largest regularisation.

    Returns:
        The best one.
    """
    if not fitted.count:
        return Chosen(start, torch.zeros_like(fitted.cross))
    solver = RidgeSolver(fitted)
    best = Chosen(start, solver.weight(start))
    if not held_out.count or solver.constant:
        return best
    least = held_out.error(best.weight)
    for ratio in (step, 1 / step):
        improved = False
        while within[0] <= best.ridge * ratio <= within[1]:
            trial = Chosen(best.ridge * ratio, solver.weight(best.ridge * ratio))
            error = held_out.error(trial.weight)
            if not error < least:
                break
            best, least, improved = trial, error, True
        if improved:
            break
    return best


@dataclass(frozen=True)
class DualRidge:
    """Ridge regression with more unknowns than samples.

    Attributes:
        ridge: In units of the mean diagonal of the Gram matrix of the samples.
        coefficients: ``W = A^T coefficients`` for centred samples ``A``. Shape ``(samples, targets)``.
        mean: Mean sample. Shape ``(unknowns,)``.
        mean_target: Shape ``(targets,)``.
        left_out: Prediction of each sample by the others. Shape ``(samples, targets)``.
    """

    ridge: float
    coefficients: Tensor
    mean: Tensor
    mean_target: Tensor
    left_out: Tensor


def dual_ridge(samples: Tensor, targets: Tensor, *, within: tuple[float, float], step: float) -> DualRidge:
    """Ridge regression in dual form; the regularisation is the one with the least leave-one-out error.

    Args:
        samples: Shape ``(n, unknowns)``, float64.
        targets: Shape ``(n, targets)``, float64.
        within: Least and largest regularisation.
        step: Ratio of neighbours.

    Returns:
        The solution; constant samples give zero coefficients.
    """
    n = len(samples)
    mean, mean_target = samples.mean(0), targets.mean(0)
    a, b = samples - mean, targets - mean_target
    kernel = a @ a.T
    scale = kernel.diagonal().mean()
    if n < 3 or not scale > 1e-9 * samples.square().sum(1).mean():
        return DualRidge(within[1], torch.zeros_like(b), mean, mean_target, mean_target.expand_as(b).clone())
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp_min(0)
    rotated = vectors.T @ b
    best: tuple[float, float, Tensor] | None = None
    ridge = within[0]
    while ridge <= within[1]:
        # hat matrix H = 1/n + V diag(l / (l + mu)) V^T; left out, sample i misses (b - H b)_i / (1 - H_ii)
        shrink = values / (values + ridge * scale)
        residual = b - vectors @ (shrink[:, None] * rotated)
        leverage = 1 / n + vectors.square() @ shrink
        missed = residual / (1 - leverage).clamp_min(1e-9)[:, None]
        error = missed.square().sum().item()
        if best is None or error < best[0]:
            best = (error, ridge, missed)
        ridge *= step
    assert best is not None
    _, ridge, missed = best
    coefficients = vectors @ (rotated / (values + ridge * scale)[:, None])
    return DualRidge(ridge, coefficients, mean, mean_target, targets - missed)
