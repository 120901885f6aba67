"""Hard thresholding pursuit: a step of IHT finds a support, least squares finds the values on it."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.linalg import norms
from unconv.operators import LinearOperator
from unconv.recover.greedy import Iterate, fit, run_greedy
from unconv.recover.iht import SparseRecovery
from unconv.recover.niht import normalised_step
from unconv.solvers.solution import Solution
from unconv.sparsity import SparsityModel


def htp(
    operator: LinearOperator, x: Tensor, model: SparsityModel, *, tolerance: float = 1e-6, max_steps: int = 100
) -> Solution[SparseRecovery]:
    """Hard thresholding pursuit (Foucart 2011), for any union of subspaces.

    The support is that of ``M(z + mu W (x - W^T z))``; the values on it minimise ``||x - W^T z||``, by conjugate
    gradients from where the step has led. The gradient vanishes on the support of such values, so they set the step
    size themselves, ``mu = ||z||^2 / ||W^T z||^2``. Where the new support fits no better than the old one, the step is
    made again as short as normalised IHT's acceptance test asks for. So, for exact projections, the residual falls
    whenever the support changes, no support comes twice, and one that repeats itself is the end (``"stalled"``: with
    noise in ``x``, the regular one). Arguments, results and errors are those of ``niht``.
    """

    def advance(current: Iterate, running: Tensor, tested: Tensor) -> Iterate:
        # support of M(z + mu W (x - W^T z)), then least squares on it
        thresholded = normalised_step(operator, x, model, current, tested)
        z = fit(operator, x, thresholded.z != 0, thresholded.z, skip=~running, tolerance=tolerance)
        return Iterate.of(operator, x, thresholded.code.with_values(z))

    def repeated(current: Iterate, next_: Iterate) -> Tensor:
        return ((next_.z != 0) == (current.z != 0)).flatten(1).all(1)

    def step(current: Iterate, running: Tensor) -> tuple[Iterate, Tensor]:
        next_ = advance(current, running, torch.zeros_like(running))
        worse = running & ~repeated(current, next_) & (norms(next_.residual) >= norms(current.residual))
        if worse.any():
            next_ = advance(current, worse, worse).where(worse, next_)
        return next_, repeated(current, next_)

    return run_greedy(operator, x, model, step, tolerance=tolerance, max_steps=max_steps)
