"""Ridge regression from sums: the regularisation is chosen on samples that took no part, or one left out at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PART = 700  # columns of the normal equations that are multiplied at a time; their lower half is never computed
COMBINATIONS = 32  # random combinations of the targets by which regularisations are compared


class NormalEquations:
    """Sums of ``[a 1]^T [a 1]``, ``[a 1]^T b`` and ``b^2`` over samples ``a`` with targets ``b``, in float64."""

    def __init__(self, unknowns: int, targets: int) -> None:
        """Start from nothing: samples of a length, and the length of their targets."""
        self._upper = torch.zeros(unknowns + 1, unknowns + 1, dtype=torch.float64)
        self.cross = torch.zeros(unknowns + 1, targets, dtype=torch.float64)
        self.squares = torch.zeros(targets, dtype=torch.float64)

    @property
    def gram(self) -> Tensor:
        """``[a 1]^T [a 1]``."""
        return self._upper.triu() + self._upper.triu(1).T

    @property
    def count(self) -> int:
        """Number of samples."""
        return round(self._upper[-1, -1].item())

    def add(self, samples: Tensor, targets: Tensor) -> None:
        """Add samples ``(n, unknowns)`` with targets ``(n, targets)``; their products are taken in their own type."""
        a = torch.cat([samples, samples.new_ones(len(samples), 1)], 1)
        for start in range(0, a.shape[1], PART):
            self._upper[start : start + PART, start:] += a[:, start : start + PART].T @ a[:, start:]
        self.cross += a.T @ targets
        self.squares += targets.double().square().sum(0)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        total = NormalEquations(len(self._upper) - 1, self.cross.shape[1])
        total._upper = self._upper + other._upper
        total.cross = self.cross + other.cross
        total.squares = self.squares + other.squares
        return total


class RidgeSolver:
    """Solutions of centred normal equations, ``W = (A^T A + ridge * mean(diag A^T A) I)^-1 A^T b``."""

    def __init__(self, sums: NormalEquations) -> None:
        """Centre the equations, of at least one sample."""
        gram, n = sums.gram, sums.count
        self.mean, self.mean_target = gram[-1, :-1] / n, sums.cross[-1] / n
        self.gram = gram[:-1, :-1] - n * torch.outer(self.mean, self.mean)
        self.cross = sums.cross[:-1] - n * torch.outer(self.mean, self.mean_target)
        self.scale = self.gram.diagonal().mean().item()
        # what is left of a constant by rounding in float32 sums is nothing
        self.constant = not self.scale > 1e-9 * gram.diagonal()[:-1].mean().item()

    def weight(self, ridge: float, combined: Tensor | None = None) -> Tensor:
        """Return ``W`` of the targets or, ``(targets, n)``, of combinations of them; the last row holds intercepts."""
        cross, mean = self.cross, self.mean_target
        if combined is not None:
            cross, mean = cross @ combined, mean @ combined
        if self.constant:
            return torch.cat([torch.zeros_like(cross), mean[None]])
        regularised = self.gram.clone()
        regularised.diagonal().add_(ridge * self.scale)
        factor, failed = torch.linalg.cholesky_ex(regularised)
        if failed:
            return self.weight(10 * ridge, combined)
        weight = torch.cholesky_solve(cross, factor)
        return torch.cat([weight, (mean - self.mean @ weight)[None]])


def choose_on_held_out(
    fitted: NormalEquations, held_out: NormalEquations, *, start: float, step: float, within: tuple[float, float]
) -> tuple[float, Tensor]:
    """Return the regularisation that predicts held-out samples best, walking to better neighbours from the first.

    In units of the mean diagonal, with the weights ``(unknowns + 1, targets)`` of the fitted samples alone. Where there
    are many targets, those that are compared are random combinations of them.
    """
    if not fitted.count:
        return start, torch.zeros_like(fitted.cross)
    solver, combined = RidgeSolver(fitted), None
    if not held_out.count or solver.constant:
        return start, solver.weight(start)
    gram, cross = held_out.gram, held_out.cross
    if cross.shape[1] > COMBINATIONS:
        generator = torch.Generator().manual_seed(0)
        combined = torch.randn(cross.shape[1], COMBINATIONS, generator=generator, dtype=cross.dtype)
        cross = cross @ combined

    def error(ridge: float) -> float:
        # ||b - W^T a||^2 - ||b||^2 = <W, a a^T W> - 2 <W, a b^T>
        weight = solver.weight(ridge, combined)
        return (weight * (gram @ weight - 2 * cross)).sum().item()

    best, least = start, error(start)
    for ratio in (step, 1 / step):
        begun = best
        while within[0] <= best * ratio <= within[1] and (found := error(best * ratio)) < least:
            best, least = best * ratio, found
        if best != begun:
            break
    return best, solver.weight(best)


@dataclass(frozen=True)
class DualRidge:
    """Ridge regression with more unknowns than samples."""

    ridge: float  # in units of the mean diagonal of the Gram matrix of the samples
    coefficients: Tensor  # W = A^T coefficients for centred samples A; shape (samples, targets)
    mean: Tensor  # mean sample; shape (unknowns,)
    mean_target: Tensor  # shape (targets,)
    left_out: Tensor  # prediction of each sample by the others; shape (samples, targets)


def dual_ridge(samples: Tensor, targets: Tensor, *, within: tuple[float, float], step: float) -> DualRidge:
    """Return the regression of samples ``(n, unknowns)`` in dual form, with the ridge of least leave-one-out error.

    Constant samples give zero coefficients.
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
