"""What a decoder leaves: explained variance by spatial frequency, and the squared error to expect at each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.linalg import tiny

AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class ExplainedVariance:
    """``1 - ||error||^2 / ||image||^2`` in octaves of spatial frequency."""

    edges: Tensor  # frequencies between the bands, in cycles per pixel, from 0 up; shape (bands + 1,)
    luminance: Tensor  # of the mean over channels; NaN where the images have nothing there; shape (bands,)
    colour: Tensor  # of the differences from that mean; shape (bands,)
    luminance_total: float  # of all frequencies
    colour_total: float  # of all frequencies; NaN with one channel


def explained_variance(images: Tensor, estimates: Tensor, *, bands: int = 6) -> ExplainedVariance:
    """Return the explained variance of estimates ``(N, C, *spatial)``, by frequency and by luminance and colour.

    The mean of each channel over the images is not counted, and images are faded out towards their borders (Hann
    window), so that the jump between opposite borders is not taken for detail.
    """
    dims = images.ndim - 2
    mean = images.mean((0, *range(2, images.ndim)), keepdim=True)
    pair = torch.stack([images - mean, estimates - images]).double()
    window = torch.ones(images.shape[2:], dtype=torch.float64)
    frequency = torch.zeros(images.shape[2:], dtype=torch.float64)
    for axis, n in enumerate(images.shape[2:]):
        shape = [1] * dims
        shape[axis] = n
        window = window * torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1].reshape(shape)
        frequency = torch.maximum(frequency, torch.fft.fftfreq(n, dtype=torch.float64).abs().reshape(shape))
    luminance = pair.mean(2, keepdim=True)
    edges = torch.cat([torch.zeros(1), 0.5 * 0.5 ** torch.arange(bands - 1, -1, -1)]).double()
    band = torch.bucketize(frequency, edges[1:-1], right=True).flatten()
    shares, totals = [], []
    for part in (luminance, pair - luminance):
        spectrum = torch.fft.fftn(part * window, dim=list(range(-dims, 0)))
        power = spectrum.abs().square().sum((1, 2)).flatten(1)
        total = torch.zeros(2, bands, dtype=torch.float64).index_add_(1, band, power)
        nothing = total[0] <= 1e-12 * pair[0].square().sum()
        shares.append(torch.where(nothing, torch.nan, 1 - total[1] / total[0].clamp_min(tiny(total))))
        whole = part[0].square().sum()
        colourless = images.shape[1] == 1 and len(totals) == 1
        totals.append(float("nan") if colourless else (1 - part[1].square().sum() / whole).item())
    return ExplainedVariance(edges, shares[0], shares[1], totals[0], totals[1])


@dataclass(frozen=True)
class ErrorModel:
    """The squared error to expect at each pixel of an estimate, from the contrast of the estimate around it.

    What a linear decoder misses is detail, and there is more of it where the estimate varies: the mean squared
    error of reference images that took no part in the fit, in equally full bins of local contrast.
    """

    contrast: Tensor  # mean local standard deviation of each bin, ascending; shape (bins,)
    variance: Tensor  # mean squared error per pixel and channel of each bin; shape (bins,)
    reach: int  # pixels on each side that the local standard deviation is taken over

    @staticmethod
    def of(estimates: Tensor, residuals: Tensor, *, reach: int, bins: int = 16) -> ErrorModel:
        """Return the model of estimates ``(N, C, *spatial)`` of images that took no part in the fit."""
        contrast, variance = _binned(_local_deviation(estimates, reach), residuals.square().mean(1), bins)
        return ErrorModel(contrast, variance, reach)

    def __call__(self, estimates: Tensor) -> Tensor:
        """Return the squared error to expect at each pixel, a mean over channels: ``(N, *spatial)``."""
        x = _local_deviation(estimates, self.reach)
        knots, values = self.contrast.to(x), self.variance.to(x)
        if len(knots) == 1:
            return values.expand_as(x)
        right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
        width = (knots[right] - knots[right - 1]).clamp_min(tiny(x))
        share = ((x - knots[right - 1]) / width).clamp(0, 1)
        return torch.lerp(values[right - 1], values[right], share)

    def calibration(self, images: Tensor, estimates: Tensor, *, bins: int = 10) -> tuple[Tensor, Tensor]:
        """Return mean expected and mean true squared errors, in equally full bins of what is expected."""
        return _binned(self(estimates), (images - estimates).square().mean(1), bins)


def _binned(x: Tensor, y: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return the means of two quantities in equally full bins of the first."""
    x, y = x.flatten(), y.flatten()
    parts = [part for part in x.argsort().tensor_split(bins) if len(part)]
    return torch.stack([x[part].mean() for part in parts]), torch.stack([y[part].mean() for part in parts])


def _local_deviation(x: Tensor, reach: int) -> Tensor:
    # Shape (N, C, *spatial) to (N, *spatial): root of the variance in a window, a mean over channels
    dims = x.ndim - 2
    reach = min(reach, *[(n - 1) // 2 for n in x.shape[2:]])

    def local_mean(x: Tensor) -> Tensor:
        for axis in range(dims):  # a window is the product of its sides
            size = [2 * reach + 1 if axis == other else 1 for other in range(dims)]
            x = AVERAGE[dims](x, size, stride=1, padding=[n // 2 for n in size], count_include_pad=False)
        return x

    x = x - x.mean(tuple(range(2, x.ndim)), keepdim=True)
    return (local_mean(x.square()) - local_mean(x).square()).clamp_min(0).mean(1).sqrt()
