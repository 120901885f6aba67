"""A first image, by quasi-Newton steps in the coordinates of natural images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unconv.decode.priors import Gaussian, Metric, Smooth
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction, SideInformation
from unconv.linalg import norms, tiny
from unconv.solvers.lbfgs import quasi_newton

LIKENESS = 0.9
POWER = 1.0
OUTSIDE = 1e-3
FAINT = 1e-3

Watch = Callable[[Tensor], None]


def natural_images(count: int, places: Metric, like: Tensor, *, root: bool = False) -> Gaussian:
    """The metric of natural images: any two channels are correlated, whatever the places.

    Args:
        count: Number of images.
        places: Metric over places.
        like: Gives channels, type and device.
        root: Take the square root of the covariance of the channels; ``places`` is taken as it is.

    Returns:
        The metric.
    """
    channels = like.shape[1]
    mixing = torch.full((channels, channels), LIKENESS, dtype=like.dtype, device=like.device).fill_diagonal_(1.0)
    if root:
        values, vectors = torch.linalg.eigh(mixing)
        mixing = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return Gaussian(mixing.expand(count, channels, channels), places)


@dataclass(frozen=True)
class Coordinates:
    """Coordinates ``z`` of images in which the entries of natural images are alike: ``x = C^(1/2) z``.

    Attributes:
        root: The square root of the covariance ``C`` of ``natural_images``.
        scale: One unit of ``z`` gives one unit of contrast.
    """

    root: Metric
    scale: float

    @staticmethod
    def of(like: Tensor, unit: float) -> Coordinates:
        """For a batch of images.

        Args:
            like: Images. Shape ``(N, C, *spatial)``.
            unit: What counts as one unit of contrast.

        Returns:
            The coordinates.
        """
        places = Smooth.of(like.shape[2:], POWER / 2, like)
        # the standard deviation that white noise has in the image, per entry
        spread = 1.0
        for axis in places.axes:
            spread *= (axis.square().sum() / len(axis)).sqrt().item()
        return Coordinates(natural_images(len(like), places, like, root=True), unit / spread)

    def image(self, z: Tensor) -> Tensor:
        """The images of coordinates. Shape ``(N, C, *spatial)`` to the same."""
        return self.root.apply(z) * self.scale


@dataclass(frozen=True)
class Misfit:
    """How far images are from features: ``||f(x) - target||^2 / ||target||^2`` plus violations of the box.

    Attributes:
        features: The network up to a stage, ``f``.
        target: LayerFunction of ``N`` images. Shape ``(N, *stage.code_shape)``.
        box: Bounds of the images.
        coordinates: Of the images.
    """

    features: LayerFunction
    target: Tensor
    box: Box | None
    coordinates: Coordinates

    @staticmethod
    def of(features: LayerFunction, target: Tensor, box: Box | None) -> Misfit:
        """In the coordinates of natural images."""
        like = target.new_zeros(len(target), *features.input_shape)
        return Misfit(features, target, box, Coordinates.of(like, contrast(box)))

    def pull(self, z: Tensor, known: SideInformation) -> tuple[Tensor, Tensor, Tensor]:
        """One pass forward and back.

        Args:
            z: Coordinates of images. Shape ``(N, *input)``.
            known: What is held fixed.

        Returns:
            The misfit, shape ``(N,)``; its gradient with respect to ``z``; and the images.
        """
        size = norms(self.target).clamp_min(tiny(self.target))
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = self.coordinates.image(z)
            loss = (norms(self.features(x, known) - self.target) / size).square()
            if self.box is not None:
                loss = loss + OUTSIDE * norms((x - self.box.project(x)) / contrast(self.box)).square()
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), gradient, x.detach()


def outline(
    features: LayerFunction,
    target: Tensor,
    known: SideInformation,
    *,
    box: Box | None,
    passes: int,
    losers: bool = False,
    watch: Watch | None = None,
) -> Tensor:
    """Images whose features come near the target, from the mean image, large and colourless structures first.

    Minimises a ``Misfit`` by quasi-Newton steps in the coordinates of natural images. Gauss-Newton from the mean image
    would spend its first steps on gates that do not stay, and stop in deep layers at the first ones that no longer
    fit; from here it goes on.

    Args:
        features: The network up to a stage.
        target: LayerFunction of ``N`` images. Shape ``(N, *stage.code_shape)``.
        known: What is held fixed.
        box: Bounds of the images.
        passes: Number of passes forward and back; the mean image comes back where it is 0.
        losers: Add the misfit of the network as it is, at half of the steps. With known switches ``f`` reads the
            places that won, and would let others rise above them; the network takes the maximum, which says that
            they lost. Pays where the features leave much open.
        watch: Called with the images of every pass.

    Returns:
        Shape ``(N, *input)``.
    """
    misfit = Misfit.of(features, target, box)
    readings = [known, NO_SIDE_INFORMATION] if losers and known.side_info != "none" else [known]
    steps = passes // len(readings)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        pulls = []
        for reading in readings:
            loss, gradient, x = misfit.pull(z, reading)
            pulls.append((loss, gradient))
            if watch is not None:
                watch(x)
        losses, gradients = zip(*pulls, strict=True)
        return torch.stack(losses).mean(0), torch.stack(gradients).mean(0)

    # without biases every ReLU is off at zero, and nothing says where to go from there
    noise = torch.randn(features.input_shape, dtype=target.dtype, generator=torch.Generator().manual_seed(0))
    z = FAINT * min(steps, 1) * noise.to(target.device).expand(len(target), *features.input_shape)
    best = misfit.coordinates.image(quasi_newton(evaluate, z, max_steps=steps))
    return best if box is None else box.project(best)
