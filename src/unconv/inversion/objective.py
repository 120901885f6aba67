"""What Gauss-Newton minimises: weighted squared differences of features, and violations of the image's bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.inversion.box import Box, contrast
from unconv.inversion.frozen_network import LayerFunction, SideInformation
from unconv.inversion.jacobian import Jacobian
from unconv.linalg import column, dots, norms, tiny


def check_features(function: LayerFunction, features: Tensor, *, gradient: bool = True) -> None:
    """Raise UnconvError where features are not those of the layer, or no gradient passes and one is needed."""
    if tuple(features.shape[1:]) != function.shape:
        raise UnconvError(
            f"the features have shape {tuple(features.shape[1:])}, layer {function.layer!r} gives {function.shape}; "
            "give the features of this layer"
        )
    if not torch.isfinite(features).all():
        raise UnconvError(f"the features of layer {function.layer!r} hold NaN or infinite values")
    if gradient and not function.differentiable:
        raise UnconvError(f"no gradient passes from layer {function.layer!r} to the image; use method='linear'")


def is_constant(features: Tensor) -> Tensor:
    """Return which images have features that are one number everywhere. Shape ``(N,)``, bool."""
    flat = features.flatten(1)
    return (flat == flat[:, :1]).all(1) & ((flat.shape[1] > 1) | (flat[:, 0] == 0))


@dataclass(frozen=True)
class ChannelWeights:
    """A quadratic form on residuals that counts directions of the channels alike, whatever their usual size.

    Channels of a network are alike, so plain least squares sees little but what they share, and conjugate gradients
    take long to find the rest. The inverse covariance over channels leaves exact solutions as they are. It is for
    affine maps, where the gates are known.

    Attributes:
        matrix: Shape ``(N, K, K)``; ``None`` for plain least squares.
    """

    matrix: Tensor | None = None

    @staticmethod
    def learn(jacobian: Jacobian, like: Tensor, *, probes: int, shrinkage: float, seed: int = 0) -> ChannelWeights:
        """Estimate the covariance of channels from the features' answer to white noise in the image.

        Args:
            jacobian: Derivative at the first images.
            like: Gives shape, type and device of images.
            probes: Number of noise images.
            shrinkage: Share of the mean variance that is added to each.
            seed: Seed of the noise, the same for every image.

        Returns:
            The inverse of the covariance.
        """
        generator = torch.Generator().manual_seed(seed)
        channels = jacobian.value.shape[1]
        covariance = jacobian.value.new_zeros(len(like), channels, channels)
        for _ in range(probes):
            noise = torch.randn(like.shape[1:], generator=generator, dtype=torch.float64).to(like)
            answer = jacobian.forward(noise.expand_as(like)).flatten(2)
            covariance += answer @ answer.mT
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(tiny(like)).reshape(-1, 1, 1)
        identity = torch.eye(channels, dtype=like.dtype, device=like.device)
        # Cholesky, for the LU of a batch on two threads has given garbage (oneMKL: SLASWP, parameter 6)
        factor = torch.linalg.cholesky((covariance / scale + shrinkage * identity).double())
        return ChannelWeights(torch.cholesky_inverse(factor).to(like))

    def apply(self, residual: Tensor) -> Tensor:
        """Return ``W r``. Shape ``(N, K, *spatial)`` to the same."""
        return residual if self.matrix is None else (self.matrix @ residual.flatten(2)).reshape(residual.shape)

    def select(self, indices: Tensor) -> ChannelWeights:
        """Return the weights of some of the images. ``indices``: int64."""
        return ChannelWeights(None if self.matrix is None else self.matrix[indices])


@dataclass(frozen=True)
class Objective:
    """``<r, W r> / 2 + bound / 2 * ||x - P x||^2`` with ``r = f(x) - y``, for each image of a batch.

    Attributes:
        function: The network up to a layer, ``f``.
        features: Given features ``y``. Shape ``(N, *function.shape)``.
        known: What is held fixed.
        weights: Of the residuals, ``W``.
        box: Bounds of the images, onto which ``P`` projects, or ``None``.
        bound: Weight of squared violations of the bounds. Shape ``(N,)``.
    """

    function: LayerFunction
    features: Tensor
    known: SideInformation
    weights: ChannelWeights
    box: Box | None
    bound: Tensor

    @staticmethod
    def of(
        function: LayerFunction,
        features: Tensor,
        known: SideInformation,
        weights: ChannelWeights,
        box: Box | None,
        bound: float,
    ) -> Objective:
        """Return the objective, its bound in units of the features and of the box."""
        energy = dots(features, weights.apply(features))
        entries = math.prod(function.input_shape)
        return Objective(function, features, known, weights, box, bound * energy / (contrast(box) ** 2 * entries))

    def select(self, indices: Tensor) -> Objective:
        """Return the objective of some of the images. ``indices``: int64."""
        return replace(
            self,
            features=self.features[indices],
            known=self.known.select(indices),
            weights=self.weights.select(indices),
            bound=self.bound[indices],
        )

    def features_at(self, x: Tensor) -> Tensor:
        """Return ``f(x)``, differentiable."""
        return self.function(x, self.known)

    def residual(self, x: Tensor) -> Tensor:
        """Return ``f(x) - y``."""
        return self.features_at(x) - self.features

    def value(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the objective, given the residual. Shape ``(N,)``."""
        value = dots(residual, self.weights.apply(residual)) / 2
        if self.box is not None:
            value = value + self.bound / 2 * norms(x - self.box.project(x)).square()
        return value

    def gradient(self, jacobian: Jacobian, x: Tensor, residual: Tensor) -> Tensor:
        """Return the gradient with respect to the images."""
        # g = J^T W r + bound (x - P x)
        gradient = jacobian.adjoint(self.weights.apply(residual))
        return gradient if self.box is None else gradient + column(self.bound, x) * (x - self.box.project(x))

    def quadratic(self, jacobian: Jacobian, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return products with the matrix of the local quadratic model."""
        outside = None if self.box is None else column(self.bound, x) * (x != self.box.project(x))

        def product(v: Tensor) -> Tensor:
            # v -> J^T W J v + bound [x is outside] v
            result = jacobian.adjoint(self.weights.apply(jacobian.forward(v)))
            return result if outside is None else result + outside * v

        return product
