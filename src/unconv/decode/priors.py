"""What is assumed about inputs where the code leaves them open: preconditioners (prior covariances) and penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Prior = Literal["smooth", "gaussian", "l1", "tv"]
PRIORS: tuple[Prior, ...] = ("smooth", "gaussian", "l1", "tv")
CORNER_FREQUENCY = 0.1  # cycles per place, from which on power falls
SHRINKAGE = 0.3  # of an estimated covariance towards the identity


class Preconditioner(Protocol):
    """A positive definite map ``C`` on inputs: the prior covariance, so that ``<x, C^-1 x>`` measures distance."""

    def apply(self, x: Tensor) -> Tensor:
        """Return ``C x``. Shape ``(N, M, *spatial)``."""
        ...

    def at(self, rows: Tensor) -> Preconditioner:
        """Return the preconditioner of some of the inputs. ``rows``: indices, int64."""
        ...


@dataclass(frozen=True)
class Euclidean:
    """``C = 1``: every input is as likely in all directions."""

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def at(self, rows: Tensor) -> Euclidean:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Smooth:
    """Neighbouring places are alike: power falls with spatial frequency, ``(1 + (f / f0)^2)^-p`` along each axis."""

    # diagonal in the cosine basis (even continuation at the border), so each axis is one symmetric matrix (n, n)
    axes: tuple[Tensor, ...]

    @staticmethod
    def of(spatial: Sequence[int], power: float, like: Tensor) -> Smooth:
        """Return the preconditioner on maps of one size; power 0.5 is that of the amplitudes of feature maps."""
        axes = []
        for n in spatial:
            place = torch.arange(n, dtype=torch.float64)
            basis = torch.cos(math.pi / n * place.unsqueeze(1) * (place + 0.5))
            basis /= basis.norm(dim=1, keepdim=True)
            spectrum = (1 + (place / (2 * n * CORNER_FREQUENCY)) ** 2) ** -power
            axes.append((basis.T * spectrum @ basis).to(like))
        return Smooth(tuple(axes))

    def apply(self, x: Tensor) -> Tensor:
        """Return each axis filtered. Shape ``(N, M, *spatial)``."""
        for axis, matrix in enumerate(self.axes, start=2):
            if axis == x.ndim - 1:
                x = x @ matrix
            elif axis == x.ndim - 2:  # the same as below without moving numbers
                x = matrix.mT @ x
            else:
                x = (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
        return x

    def at(self, rows: Tensor) -> Smooth:
        """Return itself: it is the same for all inputs."""
        return self


@dataclass(frozen=True)
class Gaussian:
    """Channels vary together: a covariance of the channels of each input, shape ``(N, M, M)``, and one over places."""

    channels: Tensor
    places: Preconditioner

    @staticmethod
    def from_estimate(x: Tensor, places: Preconditioner) -> Gaussian:
        """Return the covariance of a first estimate's channels over places, shrunk to the identity, of unit mean."""
        flat = x.flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        covariance = centred @ centred.transpose(1, 2)
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        covariance = torch.where(scale > 0, covariance / scale, identity)
        return Gaussian((covariance + SHRINKAGE * identity) / (1 + SHRINKAGE), places)

    def apply(self, x: Tensor) -> Tensor:
        """Return the channels of each place mixed, then the places of each channel. Shape ``(N, M, *spatial)``."""
        return self.places.apply((self.channels @ x.flatten(2)).reshape(x.shape))

    def at(self, rows: Tensor) -> Gaussian:
        """Return the preconditioner of some of the inputs. ``rows``: indices, int64."""
        return Gaussian(self.channels[rows], self.places.at(rows))


class Penalty(Protocol):
    """A convex penalty on inputs."""

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty. Shape ``(N, M, *spatial)`` to ``(N,)``."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of ``x``."""
        ...

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return the second derivative along a direction of a quadratic that touches at ``x`` from above. ``(N,)``."""
        ...


@dataclass(frozen=True)
class SmoothL1:
    """``sum sqrt(x^2 + e^2) - e``: few entries are non-zero; below ``rounding``, the ``e``, one counts as zero."""

    rounding: float

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty. Shape ``(N, M, *spatial)`` to ``(N,)``."""
        return ((x.square() + self.rounding**2).sqrt() - self.rounding).flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of ``x``."""
        return x / (x.square() + self.rounding**2).sqrt()

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return the second derivative of the quadratic that touches at ``x`` from above. Shape ``(N,)``."""
        return (direction.square() / (x.square() + self.rounding**2).sqrt()).flatten(1).sum(1)


@dataclass(frozen=True)
class TotalVariation:
    """``sum sqrt(|grad x|^2 + e^2) - e`` over channels and places: edges are sharp, the rest is flat up to ``e``."""

    rounding: float

    def value(self, x: Tensor) -> Tensor:
        """Return the penalty. Shape ``(N, M, *spatial)`` to ``(N,)``."""
        return (self._length(self._steps(x)) - self.rounding).flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of ``x``."""
        steps = self._steps(x)
        return self._divergence(steps, self._length(steps))

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return the second derivative of the quadratic that touches at ``x`` from above. Shape ``(N,)``."""
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
