"""Golub-Kahan-Lanczos bidiagonalisation of a linear map: extreme singular values from products alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bidiagonal:
    """The upper bidiagonal matrix ``B`` with ``A V = U B``, after as many steps as it has columns."""

    alphas: list[float]  # diagonal of B
    betas: list[float]  # entries above the diagonal, one fewer
    next_beta: float  # norm of what A^T U has outside of V; the singular vectors' residuals are multiples of it
    exhausted: bool  # whether that is rounding, so that B holds all singular values that the start can reach

    def matrix(self) -> Tensor:
        """Return ``B`` in float64. Shape ``(steps, steps)``."""
        diagonal = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
        return diagonal + torch.diag(torch.tensor(self.betas, dtype=torch.float64), 1) if self.betas else diagonal


def bidiagonalise(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_steps: int,
    basis: Tensor | None = None,
) -> Iterator[Bidiagonal]:
    """Bidiagonalise ``A`` step by step (Golub and Kahan 1965), for the caller to stop when it has seen enough.

    Without a basis nothing is reorthogonalised: copies of converged singular values appear, which do not move the
    largest one (Paige 1972). Norms are accumulated in float64. ``start``: first vector of ``V``, of unit norm, shape
    ``(1, *shape)``. ``basis``: room for ``V``, shape ``(max_steps, size)``, against which new vectors are
    orthogonalised twice; its first rows hold ``V`` after the steps made. Yields ``B`` after each step.
    """
    eps = torch.finfo(start.dtype).eps
    alphas: list[float] = []
    betas: list[float] = []
    v = start
    u = forward(v)
    while True:
        if basis is not None:
            basis[len(alphas)] = v.flatten()
        # A v_k = beta_(k-1) u_(k-1) + alpha_k u_k
        alphas.append(_norm(u))
        u = u / alphas[-1] if alphas[-1] > 0 else u
        # A^T u_k = alpha_k v_k + beta_k v_(k+1)
        w = adjoint(u) - alphas[-1] * v
        if basis is not None:
            seen, flat = basis[: len(alphas)], w.reshape(1, -1)
            for _ in range(2):
                flat = flat - (flat @ seen.T) @ seen
            w = flat.reshape(w.shape)
        beta = _norm(w)
        exhausted = beta <= 8 * eps * max(alphas)
        yield Bidiagonal(alphas, betas, beta, exhausted)
        if exhausted or len(alphas) == max_steps:
            return
        betas.append(beta)
        v = w / beta
        u = forward(v) - beta * u


def _norm(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector, dtype=torch.float64).item()
