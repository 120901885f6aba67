"""What a code says about the pre-activations of its block: an interval for each, or averages of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.linear_system import check_code, expand_bias
from unconv.decode.preimages import preimage_bounds
from unconv.errors import UnconvError
from unconv.linalg import column, dots, norms
from unconv.sparsity import AveragePool, Code, CodeKind, Window

# A penalty f(h) on h = W x, half of a squared violation that is zero exactly where h agrees with the code, is one of
# the three classes below. ``evaluate``: the gradient of f, and the squared violation 2 f; ``curvature``: without kinks;
# ``size``: norm of the code's values, which violations are measured by.


@dataclass(frozen=True)
class Intervals:
    """``lower <= h <= upper`` for every pre-activation, infinite where nothing is known; equations where both agree."""

    lower: Tensor
    upper: Tensor

    def evaluate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signed distance from each interval, and its squared norm."""
        residual = h - torch.clamp(h, self.lower, self.upper)
        return residual, dots(residual, residual)

    def curvature(self, h: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
        """Return the squared norm of the direction over the violated intervals."""
        # arithmetic, for masks of bools are slower
        outside = torch.sign(gradient).mul_(direction)
        return dots(outside, outside)

    def size(self) -> Tensor:
        """Return the norm of the equations' right-hand sides; of all finite bounds where there is no equation."""
        equal = norms(torch.where(self.lower == self.upper, self.upper, 0.0))
        finite = norms(torch.where(self.upper.isfinite(), self.upper, 0.0))
        return torch.where(equal > 0, equal, finite)

    def at(self, rows: Tensor) -> Intervals:
        """Return the intervals of some of the inputs. ``rows``: indices, int64."""
        return Intervals(self.lower[rows], self.upper[rows])

    def with_lower_bounds_at(self, switches: Tensor, values: Tensor) -> Intervals:
        """Return the intervals with the entries at the switches at least as large as the values."""
        flat = self.lower.flatten(2).scatter_reduce(2, switches.flatten(2), values.flatten(2), "amax")
        lower = flat.reshape(self.lower.shape)
        return Intervals(lower, torch.maximum(lower, self.upper))


@dataclass(frozen=True)
class UnknownSwitches:
    """Max pooling without switches: each region's largest entry now, the least violation, stands for its switch."""

    non_maximal: Intervals  # bounds of every place
    maximal: Tensor  # lower bound of each region's largest entry; shape (N, K, *pooled)
    window: Window

    def evaluate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient and the squared violation, the largest entries being at the switches."""
        return self.non_maximal.with_lower_bounds_at(self.window.max_pool(h)[1], self.maximal).evaluate(h)

    def curvature(self, h: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
        """Return what known switches would have."""
        return self.non_maximal.curvature(h, gradient, direction)

    def size(self) -> Tensor:
        """Return the norm of the regions' values."""
        return norms(torch.where(self.maximal.isfinite(), self.maximal, 0.0))

    def at(self, rows: Tensor) -> UnknownSwitches:
        """Return the constraints on some of the inputs. ``rows``: indices, int64."""
        return UnknownSwitches(self.non_maximal.at(rows), self.maximal[rows], self.window)

    def spread(self) -> Intervals:
        """Return every place of a region at its value: a first guess, without detail within the regions."""
        upper = self.non_maximal.upper
        lower = _over_regions(self.maximal, self.window, tuple(upper.shape[2:]), "greatest")
        return Intervals(torch.minimum(lower, upper), upper)


@dataclass(frozen=True)
class Averages:
    """``average(activation(h + bias)) = values``; linear without activation, else linearised at ``h``."""

    pooling: AveragePool
    activation: Callable[[Tensor], Tensor]  # elementwise
    bias: Tensor  # broadcasts against h
    values: Tensor  # shape (N, K, *pooled)

    def evaluate(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient and the squared distance of the averages."""
        residual = self.pooling.forward(self.activation(h + self.bias)) - self.values
        return self._slope(h) * self.pooling.adjoint(residual, h.shape[2:]), residual.flatten(1).square().sum(1)

    def curvature(self, h: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
        """Return that of the linearised averages (Gauss-Newton)."""
        return self.pooling.forward(self._slope(h) * direction).flatten(1).square().sum(1)

    def size(self) -> Tensor:
        """Return the norm of the averages."""
        return norms(self.values)

    def at(self, rows: Tensor) -> Averages:
        """Return the constraints on some of the inputs. ``rows``: indices, int64."""
        return replace(self, values=self.values[rows])

    def _slope(self, h: Tensor) -> Tensor:
        at = h + self.bias
        return torch.func.jvp(self.activation, (at,), (torch.ones_like(at),))[1]


Constraints = Intervals | UnknownSwitches | Averages


def constraints(block: ConvBlock, code: Code, *, code_kind: CodeKind = "network", switches: bool = True) -> Constraints:
    """Return all that the code of a block says about ``W x``."""
    # Behind max pooling an entry that is not the maximum is at most that, and the maximum is at its switch; where the
    # activation is flat (a zero of ReLU) the whole region is only bounded. An activation that falls before it rises
    # (SiLU, GELU) turns a value below zero into the interval between its two preimages. Places in no region are free.
    check_code(block, code)
    bias = expand_bias(block, code)
    if isinstance(code.pooling, AveragePool):
        return Averages(code.pooling, block.activation.function, bias, code.values)
    if switches:
        code.check_switches()
    if code_kind == "paper":
        return _magnitudes(code)
    if block.activation.name == "relu" and (code.values < 0).any():
        raise UnconvError(f"the code of {block.name!r} holds negative values behind ReLU; give the code of this block")
    lowest, low, high = preimage_bounds(block.activation, code.values)
    if code.switches is None or not isinstance(code.pooling, Window):
        return Intervals(low - bias, high - bias)
    upper = _over_regions(high, code.pooling, code.shape[1:], "least")
    lower = _over_regions(lowest, code.pooling, code.shape[1:], "greatest")
    non_maximal = Intervals(lower - bias, torch.maximum(upper, lower) - bias)
    if switches:
        return non_maximal.with_lower_bounds_at(code.switches, low - bias)
    return UnknownSwitches(non_maximal, low - bias, code.pooling)


def _over_regions(
    values: Tensor, window: Window, spatial: tuple[int, ...], which: Literal["least", "greatest"]
) -> Tensor:
    """Return the least (greatest) value of all regions that a place lies in; infinite outside of every region."""
    sign = 1.0 if which == "least" else -1.0
    result = torch.full((*values.shape[:2], math.prod(spatial)), math.inf, dtype=values.dtype, device=values.device)
    signed = (sign * values).flatten(2)
    for places, inside in zip(*window.places(spatial, values.device), strict=True):
        index = places[inside].expand(*values.shape[:2], -1)
        result.scatter_reduce_(2, index, signed[:, :, inside], "amin")
    return (sign * result).unflatten(2, spatial)


def _magnitudes(code: Code) -> Intervals:
    """Return ``|h| <= |value|`` over each kept region, its value at the switch; dropped ones below the smallest."""
    values = code.values
    kept = values != 0
    smallest = values.abs().masked_fill(~kept, math.inf).flatten(1).amin(1)
    smallest = column(smallest.masked_fill(~kept.flatten(1).any(1), 0.0), values)
    size = torch.where(kept, values.abs(), smallest)
    if not isinstance(code.pooling, Window) or code.switches is None:
        return Intervals(torch.where(kept, values, -size), torch.where(kept, values, size))
    upper = _over_regions(size, code.pooling, code.shape[1:], "least")
    exact = replace(code, values=kept.to(values.dtype)).dense() != 0
    value = code.dense()
    return Intervals(torch.where(exact, value, -upper), torch.where(exact, value, upper))
