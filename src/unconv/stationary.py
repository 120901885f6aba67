"""Block-circulant operators: the average of ``J^T J`` of a network over places, and the preconditioner it gives.

A network commutes with shifts by its stride, so the *average* of ``J^T J`` over places and images maps blocks of pixels
to blocks by a convolution, and a Fourier transform over the grid of blocks leaves a Hermitian matrix per frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.inversion.blocks import depth_to_space, largest_divisors, pad_widths, space_to_depth

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StationaryConfig:
    """How the average of ``J^T J`` and the covariance of residuals are estimated."""

    # most pixels per axis of a block. The natural number is the stride of the layer; smaller ones take what differs
    # between the places of a larger block for the same on average, and cost less.
    block: int = 4
    probes: int = 16  # backward passes that the average of J^T J is taken from
    batch_size: int = 4
    # neighbouring frequencies on each side that matrices are averaged over; together with the number of images there
    # have to be several times more samples than numbers in a block
    smoothing: int = 2
    # share of each axis, at both ends, over which images are faded out, so that borders are not taken for detail
    taper: float = 0.1
    least_variance: float = 1e-3  # variances are raised by this share of their mean
    seed: int = 0


@dataclass(frozen=True)
class Blocks:
    """Images as blocks of pixels on a grid, padded with zeros where the blocks do not divide the image."""

    image_shape: tuple[int, ...]  # shape (C, *spatial)
    block: tuple[int, ...]  # pixels per axis of a block

    @staticmethod
    def of(image_shape: Sequence[int], stride: Sequence[int], largest: int) -> Blocks:
        """Blocks as large as the stride, or the largest divisor of it that is small enough."""
        return Blocks(tuple(image_shape), largest_divisors(stride, largest))

    @property
    def grid(self) -> tuple[int, ...]:
        """Blocks per axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.image_shape[1:], self.block, strict=True))

    @property
    def width(self) -> int:
        """Numbers per block."""
        return self.image_shape[0] * math.prod(self.block)

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the grid, counted from the end."""
        return tuple(range(-len(self.block), 0))

    def split(self, x: Tensor) -> Tensor:
        """Shape ``(N, C, *spatial)`` to ``(N, width, *grid)``."""
        sizes = zip(self.grid, self.block, self.image_shape[1:], strict=True)
        return space_to_depth(F.pad(x, pad_widths([(0, g * b - n) for g, b, n in sizes])), self.block)

    def join(self, blocks: Tensor) -> Tensor:
        """The opposite of ``split``, without the padding."""
        x = depth_to_space(blocks, self.block)
        return x[(..., *[slice(n) for n in self.image_shape[1:]])]


def average_normal_operator(features: Features, images: Tensor, blocks: Blocks, config: StationaryConfig) -> Tensor:
    """The average of ``J^T J`` over places and images: Hermitian matrices, shape ``(*frequencies, width, width)``.

    For features ``u`` of independent random signs, ``J^T u`` has covariance ``J^T J``: one backward pass per sample,
    and an estimate without negative eigenvalues whose error is relative to each eigenvalue. Frequencies are those of
    ``torch.fft.rfftn`` of the grid.
    """
    generator = torch.Generator().manual_seed(config.seed)
    pulls = []
    for chosen in (torch.arange(config.probes) % len(images)).split(config.batch_size):
        with torch.enable_grad():
            x = images[chosen].detach().requires_grad_()
            y = features(x)
            signs = torch.randint(2, y.shape, generator=generator).to(y) * 2 - 1
            pulls.append(torch.autograd.grad(y, x, signs)[0])
    return smoothed_covariance(torch.cat(pulls), blocks, config)


def residual_covariance(residuals: Tensor, blocks: Blocks, config: StationaryConfig) -> Tensor:
    """The covariance of residual images ``(N, C, *spatial)`` by frequency, with a least variance: positive definite."""
    covariance = smoothed_covariance(residuals, blocks, config)
    mean = covariance.diagonal(dim1=-2, dim2=-1).real.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return covariance + config.least_variance * mean * torch.eye(blocks.width)


def smoothed_covariance(samples: Tensor, blocks: Blocks, config: StationaryConfig) -> Tensor:
    """The covariance by frequency, per pixel, of images of mean zero, alike at every block: smoothed periodograms."""
    split = blocks.split(samples.detach().float().cpu())
    axes, grid = blocks.axes, blocks.grid
    for axis, g in zip(axes, grid, strict=True):
        ramp = (torch.arange(g) + 0.5) / max(config.taper * g, 0.5)
        window = torch.sin(math.pi / 2 * torch.minimum(ramp, ramp.flip(0)).clamp(max=1))
        window *= (g / window.square().sum()).sqrt()
        split = split * window.reshape(-1, *[1] * (-1 - axis))
    spectrum = torch.fft.fftn(split, dim=axes, norm="ortho").movedim(1, -1).movedim(0, -2)
    matrices = spectrum.mT @ spectrum.conj() / len(samples)
    for axis, g in enumerate(grid):
        reach = min(config.smoothing, (g - 1) // 2)
        neighbours = (matrices.roll(shift, axis) for shift in range(-reach, reach + 1))
        matrices = sum(neighbours, torch.zeros_like(matrices)) / (2 * reach + 1)
    return matrices.narrow(len(grid) - 1, 0, grid[-1] // 2 + 1).contiguous()


class StationaryPreconditioner:
    """The posterior covariance ``M = (H / nu + C^-1)^-1`` of a linear Gaussian model that is alike at every place.

    ``H`` is the average of ``J^T J``, ``C`` the covariance of what a linear decoder misses, ``nu`` the variance of a
    feature around its linearisation, with ``unit = mean(diag H) mean(diag C)`` its natural unit. With ``C = L L^H`` and
    ``L^H H L = U diag(s) U^H`` per frequency, ``M = L U diag(1 / (1 + s / nu)) U^H L^H``: any ``nu`` at the cost of a
    product. ``factor`` is ``L U``, ``gains`` is ``s``.
    """

    def __init__(self, normal: Tensor, covariance: Tensor, blocks: Blocks) -> None:
        """Factorise ``H`` and ``C``, matrices ``(*frequencies, width, width)`` of the blocks."""
        self.blocks = blocks
        means = [m.diagonal(dim1=-2, dim2=-1).real.mean().item() for m in (normal, covariance)]
        self.unit = max(means[0] * means[1], torch.finfo(torch.float32).tiny)
        root = torch.linalg.cholesky(covariance)
        inner = root.mH @ normal @ root
        values, vectors = torch.linalg.eigh((inner + inner.mH) / 2)
        self.factor = (root @ vectors).to(torch.complex64)
        self.gains = values.clamp_min(0).float()

    @staticmethod
    def of(
        features: Features,
        references: Tensor,
        residuals: Tensor,
        stride: Sequence[int],
        config: StationaryConfig | None = None,
    ) -> StationaryPreconditioner:
        """The preconditioner of a layer, from reference images and what its linear decoder misses in unseen ones.

        ``stride``: pixels per position and axis; empty where the layer has no positions.
        """
        config = config or StationaryConfig()
        shape = references.shape[1:]
        blocks = Blocks.of(shape, stride or [config.block] * (len(shape) - 1), config.block)
        return StationaryPreconditioner(
            average_normal_operator(features, references[: config.probes], blocks, config),
            residual_covariance(residuals, blocks, config),
            blocks,
        )

    def apply(self, v: Tensor, nu: Tensor | float) -> Tensor:
        """The product ``M v``, shape ``(N, C, *spatial)``; ``nu`` is one number, or one per image, shape ``(N,)``."""
        axes, grid = self.blocks.axes, self.blocks.grid
        factor, gains = self.factor.to(v.device), self.gains.to(v.device)
        spectrum = torch.fft.rfftn(self.blocks.split(v).float(), dim=axes).movedim(1, -1).movedim(0, -2)
        weight = 1 / (1 + gains[..., None, :] / torch.as_tensor(nu, dtype=gains.dtype, device=v.device).reshape(-1, 1))
        # M = (L U) diag(1 / (1 + s / nu)) (L U)^H, on rows of images
        spectrum = ((spectrum @ factor.conj()) * weight) @ factor.mT
        blocks = torch.fft.irfftn(spectrum.movedim(-2, 0).movedim(-1, 1), s=grid, dim=axes)
        return self.blocks.join(blocks).to(v)
