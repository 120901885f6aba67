"""Model-based CoSaMP: merge the residual's support with the code's, fit, prune."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from unconv.operators import LinearOperator
from unconv.recover.greedy import Iterate, fit, run_greedy
from unconv.recover.iht import SparseRecovery
from unconv.solvers.solution import Solution
from unconv.sparsity import Pooled, SparsityModel, keep_largest


def cosamp(
    operator: LinearOperator, x: Tensor, model: SparsityModel, *, tolerance: float = 1e-6, max_steps: int = 50
) -> Solution[SparseRecovery]:
    """Compressive sampling matching pursuit (Needell and Tropp 2009), model-based (Baraniuk et al. 2010).

    The error of a code lies in sums of two codes, so the support of the residual's proxy ``W (x - W^T z)`` among those
    is merged with that of ``z``; least squares on the merged support, by conjugate gradients; projection of the result
    back onto the model. A second fit on what is left makes every iterate a function of its support, as in subspace
    pursuit (Dai and Milenkovic 2009), so a support that repeats itself is the end (``"stalled"``: with noise in ``x``,
    the regular one). There is no step size. Arguments, results and errors are those of ``niht``.
    """

    def step(current: Iterate, running: Tensor) -> tuple[Iterate, Tensor]:
        support = current.z != 0
        merged = support | doubled_support(model, operator.forward(current.residual))
        fitted = fit(operator, x, merged, current.z, skip=~running, tolerance=tolerance)
        pruned = model.project(fitted)
        start = pruned.dense()
        kept = start != 0
        z = fit(operator, x, kept, start, skip=~running, tolerance=tolerance)
        return Iterate.of(operator, x, pruned.with_values(z)), (kept == support).flatten(1).all(1)

    return run_greedy(operator, x, model, step, tolerance=tolerance, max_steps=max_steps)


def doubled_support(model: SparsityModel, h: Tensor) -> Tensor:
    """Return where the best sum of two codes of a model lies, the paper's ``M_k^2``; bool, of the shape of ``h``."""
    # exact for TopK (its 2 k largest entries) and for Pooled over regions that do not overlap (the two largest of each
    # region, and of those the 2 k largest); for any other model the projection's support and that of what is left
    parts = replace(model, k=None) if isinstance(model, Pooled) else model
    first = parts.project(h).dense()
    both = first + parts.project(h.masked_fill(first != 0, 0.0)).dense()
    if isinstance(model, Pooled) and model.k is not None:
        both = keep_largest(both, 2 * model.k)
    return both != 0
