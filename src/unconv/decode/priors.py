"""What is assumed about inputs where the code leaves them open: metrics that fix the nearest point, and penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CORNER_FREQUENCY = 0.1
SHRINKAGE = 0.3


class Metric(Protocol):
    """A positive definite map ``C`` on inputs: the prior covariance, so that ``<x, C^-1 x>`` measures distance."""

    def apply(self, x: Tensor) -> Tensor:
        """``C x``. Shape ``(N, M, *spatial)``."""
        ...

    def at(self, rows: Tensor) -> Metric:
        """The metric of some of the inputs. ``rows``: indices, int64."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """``C = 1``: every input is as likely in all directions."""

    def apply(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        return x

    def at(self, rows: Tensor) -> Euclidean:
        """Returns itself."""
        return self


@dataclass(frozen=True)
class Smooth:
    """Neighbouring places are alike: power falls with spatial frequency, ``(1 + (f / f0)^2)^-p`` along each axis.

    Diagonal in the cosine basis (even continuation at the border), so each axis is one small symmetric matrix.

    Attributes:
        axes: One matrix per spatial axis, each of shape ``(n, n)``.
    """

    axes: tuple[Tensor, ...]

    @staticmethod
    def of(spatial: Sequence[int], power: float, like: Tensor) -> Smooth:
        """The metric on maps of one size.

        Args:
            spatial: Size of the map.
            power: The exponent ``p``; 0.5 for the amplitudes of natural images' feature maps.
            like: Gives type and device.

        Returns:
            The metric.
        """
        axes = []
        for n in spatial:
            place = torch.arange(n, dtype=torch.float64)
            basis = torch.cos(math.pi / n * place.unsqueeze(1) * (place + 0.5))
            basis /= basis.norm(dim=1, keepdim=True)
            spectrum = (1 + (place / (2 * n * CORNER_FREQUENCY)) ** 2) ** -power
            axes.append((basis.T * spectrum @ basis).to(like))
        return Smooth(tuple(axes))

    def apply(self, x: Tensor) -> Tensor:
        """Filter each axis. Shape ``(N, M, *spatial)``."""
        for axis, matrix in enumerate(self.axes, start=2):
            if axis == x.ndim - 1:
                x = x @ matrix
            elif axis == x.ndim - 2:  # the same as below without moving numbers
                x = matrix.mT @ x
            else:
                x = (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
        return x

    def at(self, rows: Tensor) -> Smooth:
        """Returns itself: it is the same for all inputs."""
        return self


@dataclass(frozen=True)
class Gaussian:
    """Channels vary together: covariance over channels, and a metric over places.

    Attributes:
        channels: Covariance of the channels of each input. Shape ``(N, M, M)``.
        places: Metric over places.
    """

    channels: Tensor
    places: Metric

    @staticmethod
    def from_estimate(x: Tensor, places: Metric) -> Gaussian:
        """Empirical Bayes: the covariance of a first estimate's channels over its places, shrunk to the identity.

        Args:
            x: First estimates. Shape ``(N, M, *spatial)``.
            places: Metric over places.

        Returns:
            The metric, of unit mean variance.
        """
        flat = x.flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        covariance = centred @ centred.transpose(1, 2)
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        covariance = torch.where(scale > 0, covariance / scale, identity)
        return Gaussian((covariance + SHRINKAGE * identity) / (1 + SHRINKAGE), places)

    def apply(self, x: Tensor) -> Tensor:
        """Mix the channels of each place, then the places of each channel. Shape ``(N, M, *spatial)``."""
        return self.places.apply((self.channels @ x.flatten(2)).reshape(x.shape))

    def at(self, rows: Tensor) -> Gaussian:
        """The metric of some of the inputs. ``rows``: indices, int64."""
        return Gaussian(self.channels[rows], self.places.at(rows))


class Penalty(Protocol):
    """A convex penalty on inputs."""

    def value(self, x: Tensor) -> Tensor:
        """Shape ``(N, M, *spatial)`` to ``(N,)``."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        ...

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """A bound on the second derivative along a direction, from the quadratic that touches at ``x``. ``(N,)``."""
        ...


@dataclass(frozen=True)
class SmoothL1:
    """``sum sqrt(x^2 + e^2) - e``: few entries are non-zero.

    Attributes:
        rounding: The ``e`` below which an entry counts as zero.
    """

    rounding: float

    def value(self, x: Tensor) -> Tensor:
        """Shape ``(N, M, *spatial)`` to ``(N,)``."""
        return ((x.square() + self.rounding**2).sqrt() - self.rounding).flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return x / (x.square() + self.rounding**2).sqrt()

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Shape ``(N,)``."""
        return (direction.square() / (x.square() + self.rounding**2).sqrt()).flatten(1).sum(1)


@dataclass(frozen=True)
class TotalVariation:
    """``sum sqrt(|grad x|^2 + e^2) - e`` over channels and places, isotropic: edges are sharp, the rest flat.

    Attributes:
        rounding: The ``e`` below which a step counts as flat.
    """

    rounding: float

    def value(self, x: Tensor) -> Tensor:
        """Shape ``(N, M, *spatial)`` to ``(N,)``."""
        return (self._length(self._steps(x)) - self.rounding).flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        steps = self._steps(x)
        return self._divergence(steps, self._length(steps))

    def product(self, x: Tensor, direction: Tensor) -> Tensor:
        """The matrix of the quadratic that touches at ``x``, times a direction. Of the shape of ``x``."""
        return self._divergence(self._steps(direction), self._length(self._steps(x)))

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Shape ``(N,)``."""
        squares = torch.stack([d.square() for d in self._steps(direction)]).sum(0)
        return (squares / self._length(self._steps(x))).flatten(1).sum(1)

    def _steps(self, x: Tensor) -> list[Tensor]:
        return [x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in range(2, x.ndim)]

    def _length(self, steps: list[Tensor]) -> Tensor:
        return (torch.stack([s.square() for s in steps]).sum(0) + self.rounding**2).sqrt()

    @staticmethod
    def _divergence(steps: list[Tensor], length: Tensor) -> Tensor:
        result = torch.zeros_like(length)
        for axis, step in enumerate(steps, start=2):
            inner = length.shape[axis] - 1
            flow = (step / length).narrow(axis, 0, inner)
            result.narrow(axis, 0, inner).sub_(flow)
            result.narrow(axis, 1, inner).add_(flow)
        return result
