"""The lasso by accelerated proximal gradients (FISTA), with a duality gap that proves how near the end is."""

from __future__ import annotations

import torch
from torch import Tensor

from unconv.errors import UsageError
from unconv.linalg import column, norms, tiny
from unconv.operators import LinearOperator
from unconv.recover.greedy import check_input
from unconv.recover.iht import SparseRecovery
from unconv.solvers.solution import Solution, statuses
from unconv.sparsity import Code

FRACTION = 0.05  # of the weight from which on the solution is zero
GROWTH = 1.25  # of the Lipschitz estimate where it was too small


def default_weight(operator: LinearOperator, x: Tensor, fraction: float = FRACTION) -> Tensor:
    """Return a share of ``max |W x|``, from which weight on the solution is zero: above 0, shape ``(N,)``."""
    # the solution then scales with x; entries below the weight vanish, so the share is also roughly the smallest entry
    # relative to the largest
    return (fraction * operator.forward(x).flatten(1).abs().amax(1)).clamp_min(tiny(x))


def fista(
    operator: LinearOperator,
    x: Tensor,
    *,
    weight: float | Tensor | None = None,
    support: Tensor | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Solution[SparseRecovery]:
    """Minimise ``P(z) = ||x - W^T z||^2 / 2 + weight ||z||_1`` (FISTA, Beck and Teboulle 2009).

    The paper's Algorithm 2 has no factor 1/2, so its lambda is twice this weight. Each input has its own step size,
    by their backtracking on an estimate of ``||W||^2`` that begins below it, and its own momentum, which starts anew
    where it points uphill (O'Donoghue and Candès 2015). The end is proven: the residual, scaled so that
    ``max |W u| <= weight``, gives a lower bound ``D(u) = ||x||^2 / 2 - ||x - u||^2 / 2`` of every ``P(z)``.

    ``x``: inputs, shape ``(N, *input_shape)``; ``weight``: above 0, one number or one per input,
    ``default_weight(operator, x)`` where ``None``; ``support``: places that may be non-zero, shape ``(N,
    *output_shape)``, bool. An input has converged once its duality gap ``P(z) - D(u)`` is at most ``tolerance`` times
    ``||x||^2 / 2``. Returned are the best recoveries (least ``P``), as codes without pooling; ``history`` holds the gap
    of the best iterate so far, relative to ``||x||^2 / 2``. UsageError if ``x`` is no finite batch of inputs, or
    ``weight`` or ``max_steps`` is out of range.
    """
    check_input(operator, x, max_steps)
    correlation = operator.forward(x)
    if support is not None:
        correlation = correlation * support
    if weight is None:
        weight = default_weight(operator, x)
    lam = torch.as_tensor(weight, dtype=x.dtype, device=x.device).expand(len(x))
    if not (torch.isfinite(lam) & (lam > 0)).all():
        raise UsageError(f"weight is {weight}; the l1 norm needs a finite weight above 0")

    scale = (norms(x).square() / 2).clamp_min(tiny(x))
    lipschitz = norms(operator.adjoint(correlation)).square() / norms(correlation).square().clamp_min(tiny(x))
    lipschitz = lipschitz.clamp_min(tiny(x) ** 0.5)
    z = y = torch.zeros_like(correlation)
    image = image_y = torch.zeros_like(x)
    momentum = torch.ones_like(lam)
    best, best_image, least = z, image, scale
    bound = _dual_value(x, x, correlation, lam)
    history = [(least - bound) / scale]
    converged = (history[0] <= tolerance) | (norms(x) == 0)
    gradient = correlation
    for _ in range(max_steps):
        if converged.all():
            break
        # z = prox(y + W (x - W^T y) / L), L raised until it bounds the curvature along the step
        while True:
            ahead, threshold = y + gradient / column(lipschitz, y), column(lam / lipschitz, y)
            ahead = ahead - ahead.clamp(-threshold, threshold)
            step = ahead - y
            moved = operator.adjoint(step)
            ratio = norms(moved).square() / norms(step).square().clamp_min(tiny(x))
            short = ~converged & (ratio > lipschitz * (1 + 1e-5))
            if not short.any():
                break
            lipschitz = torch.where(short, torch.maximum(GROWTH * lipschitz, ratio), lipschitz)
        ahead_image = image_y + moved
        value = norms(x - ahead_image).square() / 2 + lam * ahead.flatten(1).abs().sum(1)

        # y = z + (t - 1) / t' (z - z_old)  with  t' = (1 + sqrt(1 + 4 t^2)) / 2
        change, change_image = ahead - z, ahead_image - image
        uphill = (step * change).flatten(1).sum(1) < 0
        momentum = torch.where(uphill, 1.0, momentum)
        larger = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        push = (momentum - 1) / larger
        z, image, momentum = ahead, ahead_image, larger
        y, image_y = z + column(push, z) * change, image + column(push, x) * change_image

        residual = x - image_y
        gradient = operator.forward(residual)
        if support is not None:
            gradient = gradient * support
        better = ~converged & (value < least)
        best = torch.where(column(better, z), z, best)
        best_image = torch.where(column(better, x), image, best_image)
        least = torch.where(better, value, least)
        bound = torch.where(converged, bound, torch.maximum(bound, _dual_value(x, residual, gradient, lam)))
        history.append(torch.where(converged, history[-1], ((least - bound) / scale).clamp_min(0)))
        converged = converged | (history[-1] <= tolerance)
    code = Code(best, None, tuple(operator.output_shape))
    return Solution(SparseRecovery(code, best_image), torch.stack(history), statuses(converged))


def _dual_value(x: Tensor, residual: Tensor, correlation: Tensor, weight: Tensor) -> Tensor:
    """The best lower bound of the objective along a residual whose correlation ``W r`` is known. Shape ``(N,)``."""
    size = norms(residual).square().clamp_min(tiny(x))
    most = weight / correlation.flatten(1).abs().amax(1).clamp_min(tiny(x))
    inner = (x * residual).flatten(1).sum(1)
    factor = torch.minimum(torch.maximum(inner / size, -most), most)
    return factor * inner - factor**2 * size / 2
