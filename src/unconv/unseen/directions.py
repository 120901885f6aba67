"""Directions of the image that a layer hardly sees: eigenvectors of ``J^T J`` with the smallest eigenvalues."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

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
    """The matrix ``J^T J``, at the cost of a product with each per number of the image.

    Args:
        function: The layer.
        image: Pixels. Shape ``(1, C, *spatial)``.

    Returns:
        Symmetric, in the type of the image. Shape ``(d, d)``.
    """
    shape, numbers = image.shape[1:], image.numel()
    batch = max(b for b in range(1, BATCH + 1) if numbers % b == 0)
    jacobian = Jacobian(function, image.expand(batch, *shape).contiguous())
    eye = torch.eye(numbers, dtype=image.dtype, device=image.device).reshape(numbers, *shape)
    rows = torch.cat([jacobian.adjoint(jacobian.forward(part)).flatten(1) for part in eye.split(batch)])
    return (rows + rows.T) / 2


def least_visible(
    function: PixelFunction, image: Tensor, count: int, *, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Directions with a small ``||J v||``, by LOBPCG on ``J^T J``: upper bounds of its smallest singular values.

    Knyazev (2001), preconditioned by the block-circulant model of ``J^T J``.

    Args:
        function: The layer.
        image: Pixels. Shape ``(1, C, *spatial)``.
        count: Of directions; a few, far fewer than numbers of the image.
        steps: Of the iteration, each one product with ``J^T J`` per direction.
        seed: Of the start.

    Returns:
        Orthonormal directions, the least visible first, shape ``(count, C, *spatial)``, and ``||J v||`` of each as a
        product with ``J`` has it, float64, shape ``(count,)``.
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
