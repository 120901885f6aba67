"""The attack that stands beside a bound: the most likely image given noisy features, under the same Gaussian prior."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from unconv.inversion.jacobian import Jacobian
from unconv.linalg import dots
from unconv.solvers.cg import conjugate_gradients
from unconv.unseen.image_prior import ImagePrior
from unconv.unseen.leakage import LinearModel

FORCING, INNER_STEPS, TRIALS = 0.03, 25, 6


def most_likely(model: LinearModel, features: Tensor, start: Tensor, sigma: float, *, passes: int) -> Tensor:
    """Return pixels of maximal posterior density given noisy features, from estimates ``start`` ``(N, C, *spatial)``.

    For a linear layer that is the posterior mean, which no attacker beats where the images are Gaussian.
    """
    estimates = [_one(model, y[None], x[None], sigma, passes) for y, x in zip(features, start, strict=True)]
    result = torch.cat(estimates)
    return result if model.function.box is None else result.clamp(0, 1)


def _one(model: LinearModel, y: Tensor, x: Tensor, sigma: float, passes: int) -> Tensor:
    mean = model.prior.mean.to(x)

    # ||f(x) - y||^2 / sigma^2 + <x - m, C^-1 (x - m)>; the model's posterior covariance preconditions
    def value(x: Tensor, residual: Tensor) -> Tensor:
        return dots(residual, residual) / sigma**2 + dots(x - mean, model.prior.precision(x - mean))

    spent = 0.0
    while passes - spent >= 4:
        jacobian = Jacobian(model.function, x)
        residual = jacobian.value - y
        now = value(x, residual)
        gradient = jacobian.adjoint(residual) / sigma**2 + model.prior.precision(x - mean)

        product = partial(_curvature, jacobian, model.prior, sigma)
        most = torch.tensor([min(INNER_STEPS, passes - spent - 3.0)])
        precondition = partial(model.model.apply, nu=sigma**2)
        tolerance = torch.tensor([FORCING])
        step, products = conjugate_gradients(product, -gradient, precondition, tolerance=tolerance, max_steps=most)
        spent += 1.5 + products.max().item()
        slope, length = dots(gradient, step), 1.0
        for _ in range(TRIALS):
            trial = x + length * step
            with torch.no_grad():
                reached = value(trial, model.function(trial) - y)
            spent += 0.5
            if reached <= now + 1e-4 * length * 2 * slope:
                break
            length /= 2
        else:
            return x
        x = trial
        if now - reached <= 1e-4 * now:
            return x
    return x


def _curvature(jacobian: Jacobian, prior: ImagePrior, sigma: float, v: Tensor) -> Tensor:
    # v -> (J^T J / sigma^2 + C^-1) v
    return jacobian.adjoint(jacobian.forward(v)) / sigma**2 + prior.precision(v)
