"""A Gaussian prior of images: alike at every pixel, mirrored at the borders, so that opposite ones are strangers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.residuals import AVERAGE
from unconv.stationary import Blocks

LEAST_VARIANCE = 1e-6  # of the mean, added at every frequency


@dataclass(frozen=True)
class ImagePrior:
    """Images of independent cosines, each with a covariance of channels; float64."""

    mean: Tensor  # mean colour; shape (C, 1, ...)
    covariance: Tensor  # one matrix of channels per frequency of the cosine transform; shape (*spatial, C, C)

    @staticmethod
    def of(pixels: Tensor) -> ImagePrior:
        """Estimate the prior from images ``(N, C, *spatial)``; UnconvError where they are fewer than channels."""
        count, channels = pixels.shape[:2]
        if count <= channels:
            raise UnconvError(f"{count} reference images are too few for a covariance; give 16 or more")
        pixels = pixels.double().cpu()
        mean = pixels.mean((0, *range(2, pixels.ndim))).reshape(-1, *[1] * (pixels.ndim - 2))
        spectrum = cosine_transform(pixels - mean).movedim(1, -1).movedim(0, -1)
        covariance = spectrum @ spectrum.mT / count
        least = covariance.diagonal(dim1=-2, dim2=-1).mean().clamp_min(torch.finfo(torch.float32).tiny)
        eye = torch.eye(channels, dtype=torch.float64)
        return ImagePrior(mean, covariance + LEAST_VARIANCE * least * eye)

    @property
    def variance(self) -> float:
        """Mean variance of a number of the image."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).mean().item()

    def apply(self, matrices: Tensor, v: Tensor) -> Tensor:
        """Return the product with an operator that is one matrix per frequency; float64, on the CPU."""
        spectrum = cosine_transform(v.double().cpu()).movedim(1, -1)[..., None]
        return cosine_transform((matrices @ spectrum)[..., 0].movedim(-1, 1), inverse=True)

    def precision(self, v: Tensor) -> Tensor:
        """Return ``C^-1 v``. Shape ``(N, C, *spatial)`` to the same."""
        return self.apply(self._inverse, v).to(v)

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(self.covariance))

    def posterior(self, pulls: Tensor, sigma: float) -> Tensor:
        """Return the posterior covariance ``(*spatial, C, C)`` if the features, too, saw cosines independently.

        ``pulls``: ``J^T u`` of random signs, ``(N, C, *spatial)``.
        """
        spectrum = cosine_transform(pulls.double().cpu()).movedim(1, -1).movedim(0, -1)
        normal = spectrum @ spectrum.mT / len(pulls)
        # neighbouring frequencies are seen alike
        flat = normal.flatten(-2).movedim(-1, 0)[None]
        smooth = AVERAGE[flat.ndim - 2](flat, 3, stride=1, padding=1, count_include_pad=False)
        normal = smooth[0].movedim(0, -1).unflatten(-1, normal.shape[-2:])
        return torch.cholesky_inverse(torch.linalg.cholesky(normal / sigma**2 + self._inverse))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return images drawn from the prior. Shape ``(count, C, *spatial)``, float64."""
        *spatial, channels, _ = self.covariance.shape
        noise = torch.randn(count, *spatial, channels, 1, generator=generator, dtype=torch.float64)
        spectrum = (torch.linalg.cholesky(self.covariance) @ noise)[..., 0].movedim(-1, 1)
        return cosine_transform(spectrum, inverse=True) + self.mean

    def in_blocks(self, blocks: Blocks) -> Tensor:
        """Return the covariance as if opposite borders met; matrices as ``unconv.stationary`` has them."""
        around = self.covariance
        for axis, n in enumerate(blocks.image_shape[1:]):
            # a whole turn in k waves is half a turn in 2 k: index 2 k of the cosine transform
            waves = torch.arange(n)
            around = around.index_select(axis, (2 * torch.minimum(waves, n - waves)).clamp(max=n - 1))
        width, axes = blocks.width, blocks.axes
        # one pixel of the first block at a time, and what the covariance makes of it
        first = torch.zeros(width, width, *blocks.grid, dtype=torch.float64)
        first[(range(width), range(width), *[0] * len(axes))] = 1.0
        spectrum = torch.fft.fftn(blocks.join(first), dim=axes).movedim(1, -1)[..., None]
        columns = (around.to(spectrum) @ spectrum)[..., 0].movedim(-1, 1)
        columns = blocks.split(torch.fft.ifftn(columns, dim=axes).real)
        matrices = torch.fft.rfftn(columns, dim=axes).movedim(0, -1).movedim(0, -1).mT
        return (matrices + matrices.mH) / 2


def cosine_transform(x: Tensor, *, inverse: bool = False) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II) of ``(N, C, *spatial)`` on the CPU, or its inverse."""
    from scipy import fft  # takes a while to import

    transform = fft.idctn if inverse else fft.dctn
    return torch.from_numpy(transform(x.numpy(force=True), axes=range(2, x.ndim), norm="ortho"))
