"""A layer as a function of pixels in [0, 1], and what is sampled of its Jacobian by backward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import LayerFunction


@dataclass(frozen=True)
class PixelFunction:
    """The features of a layer as a function of pixels between black, 0, and white, 1."""

    function: LayerFunction  # of what the network receives
    box: Box | None = None  # what black and white become there; None where unknown, and pixels are the network's input

    def __post_init__(self) -> None:
        if not self.function.differentiable:
            raise UnconvError(
                f"no gradient passes from layer {self.function.layer!r} to the image, so nothing is known of its "
                "Jacobian; choose a layer before the operation that stops it"
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the features. Shape ``(N, C, *spatial)`` to ``(N, *shape)``."""
        return self.function(self.to_input(pixels))

    def to_input(self, pixels: Tensor) -> Tensor:
        """Return pixels as the network receives them."""
        if self.box is None:
            return pixels
        return self.box.low.to(pixels) + (self.box.high - self.box.low).to(pixels) * pixels

    def to_pixels(self, x: Tensor) -> Tensor:
        """Return what the network receives as pixels, not clipped."""
        return x if self.box is None else (x - self.box.low.to(x)) / (self.box.high - self.box.low).to(x)

    def pull(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``J^T u`` for independent random signs ``u``, of covariance ``J^T J``; one backward pass each."""
        with torch.enable_grad():
            x = pixels.detach().requires_grad_()
            y = self(x)
            signs = torch.randint(2, y.shape, generator=generator).to(y) * 2 - 1
            return torch.autograd.grad(y, x, signs)[0]


@dataclass(frozen=True)
class Interval:
    """An estimate of a mean from independent samples, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mean_interval(samples: Tensor, groups: Tensor) -> Interval:
    """Return the mean of non-negative samples ``(n,)`` with a 95 % interval of Student's t, infinite above for one.

    ``groups``: what each is a sample of, such as its image. With at least four groups their means are the samples, so
    the interval covers the choice of the groups; with fewer, that of the probes alone.
    """
    from scipy.stats import t

    samples = samples.double().cpu()
    names = groups.unique()
    means = torch.stack([samples[groups == name].mean() for name in names])
    value = means.mean().item()
    if len(names) < 4:
        means = samples
    count = len(means)
    if count < 2:
        return Interval(value, 0.0, math.inf)
    spread = float(t.ppf(0.975, count - 1)) * means.std().item() / math.sqrt(count)
    return Interval(value, max(0.0, value - spread), value + spread)
