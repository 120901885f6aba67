"""Directions of the image that a layer hardly sees: eigenvectors of ``J^T J`` with the smallest eigenvalues."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unconv.inversion.blocks import largest_divisors
from unconv.inversion.jacobian import Jacobian
from unconv.linalg import norms
from unconv.stationary import Blocks, StationaryConfig, StationaryPreconditioner, average_normal_operator
from unconv.unseen.pixels import PixelFunction

BATCH = 64  # columns of a Jacobian at a time
PROBES = 32
VARIANCE = 0.04  # of a pixel, before anything is known of it
NEIGHBOURHOOD = 0.1  # standard deviation of the pixels around the image where the layer's average J^T J is taken
NOISE = 1e-3  # of the mean eigenvalue: what is below is alike to the preconditioner


def normal_matrix(function: PixelFunction, image: Tensor) -> Tensor:
    """Return ``J^T J`` at an image ``(1, C, *spatial)`` of ``d`` numbers. Shape ``(d, d)``."""
    rows = whole_jacobian(function, image, lambda jacobian, v: jacobian.adjoint(jacobian.forward(v)))
    return (rows + rows.T) / 2


def whole_jacobian(function: PixelFunction, image: Tensor, product: Callable[[Jacobian, Tensor], Tensor]) -> Tensor:
    """Return what a product with the Jacobian makes of every unit vector, one flat row each."""
    shape, numbers = image.shape[1:], image.numel()
    (batch,) = largest_divisors([numbers], BATCH)
    jacobian = Jacobian(function, image.expand(batch, *shape).contiguous())
    eye = torch.eye(numbers, dtype=image.dtype, device=image.device).reshape(numbers, *shape)
    return torch.cat([product(jacobian, part).flatten(1) for part in eye.split(batch)])


def least_visible(
    function: PixelFunction, image: Tensor, count: int, *, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions ``(count, C, *spatial)`` with a small ``||J v||``, the least first, and the norms.

    By LOBPCG on ``J^T J`` (Knyazev 2001), preconditioned by its block-circulant model. The norms, of products with
    ``J`` itself, are upper bounds of the smallest singular values.
    """
    from scipy.sparse.linalg import lobpcg

    shape = image.shape[1:]
    jacobian = Jacobian(function, image)
    generator = torch.Generator().manual_seed(seed)
    model = local_model(function, image, generator)
    noise = NOISE * model.unit

    def batch(columns: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(columns.T)).to(image).reshape(-1, *shape)

    def flat(x: Tensor) -> np.ndarray:
        return x.flatten(1).double().cpu().numpy().T

    def normal(v: np.ndarray) -> np.ndarray:
        return flat(jacobian.adjoint(jacobian.forward(batch(v))))

    def precondition(v: np.ndarray) -> np.ndarray:
        return flat(model.apply(batch(v), noise))

    start = model.apply(torch.randn(count, *shape, generator=generator).to(image), noise)
    vectors = flat(start)
    if normal(vectors).any():  # else everything is invisible
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it has not converged
            _, vectors = lobpcg(normal, vectors, M=precondition, largest=False, maxiter=steps, tol=0)
    vectors, _ = np.linalg.qr(vectors)
    found = torch.from_numpy(vectors.T.copy()).to(image).reshape(count, *shape)
    visibility = norms(jacobian.forward(found).double()).cpu()
    order = visibility.argsort()
    return found[order], visibility[order]


def local_model(function: PixelFunction, image: Tensor, generator: torch.Generator) -> StationaryPreconditioner:
    """Return a block-circulant model of the relative changes of features around an image."""
    around = image + NEIGHBOURHOOD * torch.randn(PROBES, *image.shape[1:], generator=generator).to(image)
    blocks = Blocks.of(image.shape[1:], [4] * (image.ndim - 2), 4)
    config = StationaryConfig(probes=PROBES, smoothing=1, taper=0.0)
    normal = average_normal_operator(function, around if function.box is None else around.clamp(0, 1), blocks, config)
    with torch.no_grad():
        size = norms(function(image)).double().square().cpu()
    normal = normal / torch.where(size > 0, size, 1.0)
    covariance = VARIANCE * torch.eye(blocks.width, dtype=torch.complex128).expand(normal.shape)
    return StationaryPreconditioner(normal.to(torch.complex128), covariance, blocks)
