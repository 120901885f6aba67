"""A first image, from a linear estimate or from nothing, by quasi-Newton steps in the coordinates of natural images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.decode.priors import Gaussian, Preconditioner, Smooth
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import LayerFunction, SideInformation
from unconv.linalg import norms, tiny
from unconv.solvers.lbfgs import quasi_newton


@dataclass(frozen=True)
class InitializationConfig:
    """How the first image is found.

    Attributes:
        channel_correlation: Correlation of any two colour channels of natural images.
        power: Exponent of their spectrum (``priors.Smooth``).
        bound: Weight of violations of the box, relative to the misfit.
        noise: Contrast of the start; without biases every ReLU is off at zero, and nothing says where to go.
        seed: Seed of that noise, the same for every image.
    """

    channel_correlation: float = 0.9
    power: float = 1.0
    bound: float = 1e-3
    noise: float = 1e-3
    seed: int = 0


DEFAULTS = InitializationConfig()


def natural_images(count: int, places: Preconditioner, like: Tensor, *, root: bool = False) -> Gaussian:
    """The metric of natural images: any two channels are correlated, whatever the places.

    Args:
        count: Number of images.
        places: Preconditioner over places.
        like: Gives channels, type and device.
        root: Take the square root of the covariance of the channels; ``places`` is taken as it is.

    Returns:
        The metric.
    """
    channels = like.shape[1]
    mixing = torch.full(
        (channels, channels), DEFAULTS.channel_correlation, dtype=like.dtype, device=like.device
    ).fill_diagonal_(1.0)
    if root:
        values, vectors = torch.linalg.eigh(mixing)
        mixing = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return Gaussian(mixing.expand(count, channels, channels), places)


def initial_image(
    function: LayerFunction,
    features: Tensor,
    known: SideInformation,
    *,
    box: Box | None,
    passes: int,
    start: Tensor | None = None,
    config: InitializationConfig = DEFAULTS,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Images whose features come near given ones, large and colourless structures first.

    Minimises ``||f(x) - y||^2 / ||y||^2`` plus violations of the box by quasi-Newton steps in coordinates ``z`` in
    which the entries of natural images are alike, ``x = x_0 + C^(1/2) z``. Gauss-Newton would spend its first steps on
    gates that do not stay, and stop in deep layers at the first ones that no longer fit.

    Args:
        function: The network up to a layer.
        features: Features of ``N`` images. Shape ``(N, *function.shape)``.
        known: What is held fixed.
        box: Bounds of the images.
        passes: Number of passes; the start comes back where it is 0.
        start: The estimate ``x_0`` of a linear decoder or of a solver that knew less; zero, the mean image, where
            ``None``.
        config: How it works.
        watch: Called with the images of every pass.

    Returns:
        Shape ``(N, *input)``.
    """
    like = features.new_zeros(len(features), *function.input_shape) if start is None else start
    unit, size = contrast(box), norms(features).clamp_min(tiny(features))
    origin = 0.0 if start is None else start
    places = Smooth.of(like.shape[2:], config.power / 2, like)
    root = natural_images(len(like), places, like, root=True)
    spread = 1.0  # the standard deviation of an entry of C^(1/2) z for white noise z
    for axis in places.axes:
        spread *= (axis.square().sum() / len(axis)).sqrt().item()

    def misfit(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = origin + root.apply(z) * (unit / spread)
            loss = (norms(function(x, known) - features) / size).square()
            if box is not None:
                loss = loss + config.bound * norms((x - box.project(x)) / unit).square()
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        if watch is not None:
            watch(x.detach())
        return loss.detach(), gradient

    if not passes:
        return like
    z = torch.zeros_like(like)
    if start is None:
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(function.input_shape, dtype=like.dtype, generator=generator)
        z = config.noise * noise.to(like).expand_as(like)
    x = origin + root.apply(quasi_newton(misfit, z, max_steps=passes)) * (unit / spread)
    return x if box is None else box.project(x)
