"""What a code says about the pre-activations of its stage: an interval for each, or averages of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from unconv.conv_block import ConvBlock
from unconv.decode.linear_system import check_code
from unconv.errors import UnconvError
from unconv.linalg import column, dots
from unconv.sparsity import AveragePool, Code, Window

Reading = Literal["network", "paper"]


@dataclass(frozen=True)
class Moved:
    """A penalty ``f`` at a point of a line ``h + length * direction``.

    Attributes:
        h: The point. Shape ``(N, K, *spatial)``.
        gradient: Gradient of ``f`` there, same shape.
        squared: Squared norm of the violations. Shape ``(N,)``.
        slope: Derivative of ``f`` along the direction. Shape ``(N,)``.
    """

    h: Tensor
    gradient: Tensor
    squared: Tensor
    slope: Tensor


class Constraints(Protocol):
    """A penalty ``f(h)`` on pre-activations ``h = W x`` that is zero exactly where ``h`` agrees with the code."""

    def gap(self, h: Tensor) -> Tensor:
        """Violation of each statement; ``f`` is half of its squared norm. Shape ``(N, ...)``."""
        ...

    def gradient(self, h: Tensor) -> Tensor:
        """Gradient of ``f``, of the shape of ``h``."""
        ...

    def curvature(self, h: Tensor, direction: Tensor) -> Tensor:
        """Second derivative of ``f`` along ``direction``, without bends. Shape ``(N,)``."""
        ...

    def bend(self, gradient: Tensor, direction: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """The same where the gradient at ``h`` is known; ``out`` may be written over. Shape ``(N,)``."""
        ...

    def move(self, h: Tensor, direction: Tensor, length: Tensor, out: tuple[Tensor, Tensor] | None = None) -> Moved:
        """``f`` at ``h + length * direction``. ``length``: shape ``(N,)``; ``out`` may be written over."""
        ...

    def size(self) -> Tensor:
        """Norm of the values that the code states, which violations are measured by. Shape ``(N,)``."""
        ...

    def at(self, rows: Tensor) -> Constraints:
        """The statements about some of the inputs. ``rows``: indices, int64."""
        ...


@dataclass(frozen=True)
class Intervals:
    """``lower <= h <= upper`` for every pre-activation; an equation where both are the same.

    Attributes:
        lower: Shape ``(N, K, *spatial)``, ``-inf`` where nothing is said.
        upper: Shape ``(N, K, *spatial)``, ``inf`` where nothing is said.
    """

    lower: Tensor
    upper: Tensor

    def gap(self, h: Tensor) -> Tensor:
        """Distance from each interval, with its sign. Shape ``(N, K, *spatial)``."""
        return h - torch.minimum(torch.maximum(h, self.lower), self.upper)

    def gradient(self, h: Tensor) -> Tensor:
        """The gap itself. Shape ``(N, K, *spatial)``."""
        return self.gap(h)

    def curvature(self, h: Tensor, direction: Tensor) -> Tensor:
        """Squared norm of the direction over the violated statements. Shape ``(N,)``."""
        return self.bend(self.gap(h), direction, h)

    def bend(self, gradient: Tensor, direction: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """From the gap, which is the gradient. Shape ``(N,)``."""
        # arithmetic, for masks of bools are slower
        outside = torch.sign(gradient, out=out).mul_(direction)
        return dots(outside, outside)

    def move(self, h: Tensor, direction: Tensor, length: Tensor, out: tuple[Tensor, Tensor] | None = None) -> Moved:
        """In tensors that are there already: to get them from the system takes longer than the arithmetic."""
        at, gap = (None, None) if out is None else out
        at = torch.addcmul(h, direction, column(length, h), out=at)
        gap = torch.clamp(at, self.lower, self.upper, out=gap)
        torch.sub(at, gap, out=gap)
        return Moved(at, gap, dots(gap, gap), dots(gap, direction))

    def size(self) -> Tensor:
        """Norm of the equations' right-hand sides; of all finite bounds where there is no equation. Shape ``(N,)``."""
        equal = torch.where(self.lower == self.upper, self.upper, 0.0).flatten(1).norm(dim=1)
        finite = torch.where(self.upper.isfinite(), self.upper, 0.0).flatten(1).norm(dim=1)
        return torch.where(equal > 0, equal, finite)

    def at(self, rows: Tensor) -> Intervals:
        """The statements about some of the inputs. ``rows``: indices, int64."""
        return Intervals(self.lower[rows], self.upper[rows])

    def won(self, switches: Tensor, values: Tensor) -> Intervals:
        """The same with the entries at the switches at least as large as given values.

        Args:
            switches: Flat index of each region's place. Shape ``(N, K, *pooled)``.
            values: Of the same shape.

        Returns:
            The intervals, none of them empty.
        """
        flat = self.lower.flatten(2).scatter_reduce(2, switches.flatten(2), values.flatten(2), "amax")
        lower = flat.reshape(self.lower.shape)
        return Intervals(lower, torch.maximum(lower, self.upper))

    def count(self) -> tuple[Tensor, Tensor]:
        """Number of equations and of inequalities of each input, each of shape ``(N,)``."""
        equal = self.lower == self.upper
        bounds = (self.lower.isfinite().long() + self.upper.isfinite().long()).masked_fill(equal, 0)
        return equal.flatten(1).sum(1), bounds.flatten(1).sum(1)


@dataclass(frozen=True)
class UnknownSwitches:
    """Max pooling whose switches are not known: the currently largest entry of each region stands for its switch.

    Of all places that could hold a region's value, that one makes the violation smallest.

    Attributes:
        losers: Bounds of every place.
        winners: Lower bound of each region's largest entry. Shape ``(N, K, *pooled)``.
        window: The regions.
    """

    losers: Intervals
    winners: Tensor
    window: Window

    def gap(self, h: Tensor) -> Tensor:
        """Distance from each interval, with its sign. Shape ``(N, K, *spatial)``."""
        return self._at_largest(h).gap(h)

    def gradient(self, h: Tensor) -> Tensor:
        """The gap itself. Shape ``(N, K, *spatial)``."""
        return self.gap(h)

    def curvature(self, h: Tensor, direction: Tensor) -> Tensor:
        """As for known switches. Shape ``(N,)``."""
        return self._at_largest(h).curvature(h, direction)

    def bend(self, gradient: Tensor, direction: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """As for known switches. Shape ``(N,)``."""
        return self.losers.bend(gradient, direction, h, out)

    def move(self, h: Tensor, direction: Tensor, length: Tensor, out: tuple[Tensor, Tensor] | None = None) -> Moved:
        """With the largest entries there. ``length``: shape ``(N,)``."""
        at = torch.addcmul(h, direction, column(length, h))
        return self._at_largest(at).move(at, direction, torch.zeros_like(length), out)

    def size(self) -> Tensor:
        """Norm of the regions' values. Shape ``(N,)``."""
        return torch.where(self.winners.isfinite(), self.winners, 0.0).flatten(1).norm(dim=1)

    def at(self, rows: Tensor) -> UnknownSwitches:
        """The statements about some of the inputs. ``rows``: indices, int64."""
        return UnknownSwitches(self.losers.at(rows), self.winners[rows], self.window)

    def spread(self) -> Intervals:
        """Every place of a region holding its value: a first guess, without detail within the regions."""
        at_most = self.losers.upper
        lower = torch.full_like(at_most, -math.inf)
        pooled = self.winners.flatten(2)
        for places, inside in zip(*self.window.places(tuple(at_most.shape[2:]), at_most.device), strict=True):
            index = places[inside].expand(*pooled.shape[:2], -1)
            lower.flatten(2).scatter_reduce_(2, index, pooled[:, :, inside], "amax")
        return Intervals(torch.minimum(lower, at_most), at_most)

    def _at_largest(self, h: Tensor) -> Intervals:
        return self.losers.won(self.window.max_pool(h)[1], self.winners)


@dataclass(frozen=True)
class Averages:
    """``average(activation(h + bias)) = values``: linear without activation, else with the gates of the current ``h``.

    Attributes:
        pooling: The average.
        activation: Elementwise.
        bias: Broadcasts against ``h``.
        values: Shape ``(N, K, *pooled)``.
    """

    pooling: AveragePool
    activation: Callable[[Tensor], Tensor]
    bias: Tensor
    values: Tensor

    def gap(self, h: Tensor) -> Tensor:
        """Computed minus stated averages. Shape ``(N, K, *pooled)``."""
        return self.pooling.forward(self.activation(h + self.bias)) - self.values

    def gradient(self, h: Tensor) -> Tensor:
        """Shape ``(N, K, *spatial)``."""
        return self._slope(h) * self.pooling.adjoint(self.gap(h), h.shape[2:])

    def curvature(self, h: Tensor, direction: Tensor) -> Tensor:
        """That of the linearised averages (Gauss-Newton). Shape ``(N,)``."""
        return self.pooling.forward(self._slope(h) * direction).flatten(1).square().sum(1)

    def bend(self, gradient: Tensor, direction: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient does not help. Shape ``(N,)``."""
        return self.curvature(h, direction)

    def move(self, h: Tensor, direction: Tensor, length: Tensor, out: tuple[Tensor, Tensor] | None = None) -> Moved:
        """By the parts above. ``length``: shape ``(N,)``."""
        at = torch.addcmul(h, direction, column(length, h))
        gradient = self.gradient(at)
        squared = self.gap(at).flatten(1).square().sum(1)
        return Moved(at, gradient, squared, (gradient * direction).flatten(1).sum(1))

    def size(self) -> Tensor:
        """Norm of the averages. Shape ``(N,)``."""
        return self.values.flatten(1).norm(dim=1)

    def at(self, rows: Tensor) -> Averages:
        """The statements about some of the inputs. ``rows``: indices, int64."""
        return replace(self, values=self.values[rows])

    def _slope(self, h: Tensor) -> Tensor:
        at = h + self.bias
        return torch.func.jvp(self.activation, (at,), (torch.ones_like(at),))[1]


def statements(stage: ConvBlock, code: Code, *, reading: Reading = "network", switches: bool = True) -> Constraints:
    """All that the code of a stage says about ``W x`` (paper.md, section 3).

    Behind max pooling an entry that lost is at most what won, and the winner stands at its switch; where the
    activation is flat (a zero of ReLU) the whole region is only bounded. Smooth activations that fall before
    they rise (SiLU, GELU) turn a value below zero into the interval between its two preimages. Places that no
    region covers are free.

    Args:
        stage: The stage that made the code.
        code: Codes of ``N`` inputs.
        reading: ``"network"``: signed pooling behind the stage's activation. ``"paper"``: magnitude pooling of ``W x``
            and the ``k`` largest kept (``Pooled(region, k)``): losers and dropped regions are bounded in magnitude.
        switches: Whether the switches are known.

    Returns:
        ``Averages`` behind average pooling, ``UnknownSwitches`` behind max pooling without them, else ``Intervals``.

    Raises:
        UnconvError: If the code cannot be this stage's.
    """
    check_code(stage, code)
    bias = torch.zeros(()) if stage.bias is None else stage.bias.reshape(-1, *[1] * (len(code.shape) - 1))
    bias = bias.to(code.values)
    if isinstance(code.pooling, AveragePool):
        return Averages(code.pooling, stage.activation.function, bias, code.values)
    if isinstance(code.pooling, Window) and code.switches is not None and switches:
        _check_switches(stage, code, code.pooling)
    if reading == "paper":
        return _magnitudes(code)
    lowest, low, high = _preimages(stage, code.values)
    if code.switches is None or not isinstance(code.pooling, Window):
        return Intervals(low - bias, high - bias)
    upper = _spread(high, code.pooling, code.shape[1:], "least")
    lower = _spread(lowest, code.pooling, code.shape[1:], "greatest")
    losers = Intervals(lower - bias, torch.maximum(upper, lower) - bias)
    winners = low - bias
    return losers.won(code.switches, winners) if switches else UnknownSwitches(losers, winners, code.pooling)


def count_statements(stage: ConvBlock, code: Code) -> dict[str, int]:
    """Equations, inequalities and unknowns of a stage, for the first input of a code, its switches known.

    Args:
        stage: The stage that made the code.
        code: Its code.

    Returns:
        ``{"equations", "inequalities", "unknowns"}``. Averages of an activation count as equations, linear or not.
    """
    unknowns = math.prod(stage.operator.input_shape)
    said = statements(stage, code)
    if not isinstance(said, Intervals):
        return {"equations": code.values[0].numel(), "inequalities": 0, "unknowns": unknowns}
    equal, bounds = (int(part[0]) for part in said.count())
    return {"equations": equal, "inequalities": bounds, "unknowns": unknowns}


def _check_switches(stage: ConvBlock, code: Code, window: Window) -> None:
    assert code.switches is not None
    outside = ~window.contains(code.switches, code.shape[1:])
    if outside.any():
        where = tuple(int(i) for i in outside.nonzero()[0])
        raise UnconvError(
            f"switch {int(code.switches[where])} at {where} of stage {stage.name!r} lies outside its region; "
            "give the switches of this stage's own pooling"
        )


def _spread(values: Tensor, window: Window, spatial: tuple[int, ...], which: Literal["least", "greatest"]) -> Tensor:
    """Least (greatest) of the values of all regions that a place lies in; infinite outside of every region."""
    sign = 1.0 if which == "least" else -1.0
    result = torch.full((*values.shape[:2], math.prod(spatial)), math.inf, dtype=values.dtype, device=values.device)
    signed = (sign * values).flatten(2)
    for places, inside in zip(*window.places(spatial, values.device), strict=True):
        index = places[inside].expand(*values.shape[:2], -1)
        result.scatter_reduce_(2, index, signed[:, :, inside], "amin")
    return (sign * result).unflatten(2, spatial)


def _magnitudes(code: Code) -> Intervals:
    """``|h| <= |value|`` over each kept region, with the signed value at the switch; dropped ones below the rest."""
    values = code.values
    kept = values != 0
    smallest = values.abs().masked_fill(~kept, math.inf).flatten(1).amin(1)
    smallest = smallest.masked_fill(~kept.flatten(1).any(1), 0.0).reshape(-1, *[1] * (values.ndim - 1))
    size = torch.where(kept, values.abs(), smallest)
    if not isinstance(code.pooling, Window) or code.switches is None:
        return Intervals(torch.where(kept, values, -size), torch.where(kept, values, size))
    upper = _spread(size, code.pooling, code.shape[1:], "least")
    exact = Code(kept.to(values.dtype), code.switches, code.shape, code.pooling).dense() != 0
    value = Code(values, code.switches, code.shape, code.pooling).dense()
    return Intervals(torch.where(exact, value, -upper), torch.where(exact, value, upper))


def _preimages(stage: ConvBlock, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of ``{f(h) <= v}`` from below, and of ``{f(h) = v}`` from both sides, each of the shape of ``values``."""
    name, function = stage.activation.name, stage.activation.function
    nothing = torch.full_like(values, -math.inf)
    if name == "none":
        return nothing, values, values
    if name == "relu":
        if (values < 0).any():
            raise UnconvError(
                f"the code of stage {stage.name!r} holds negative values behind ReLU; give the code of this stage"
            )
        return nothing, torch.where(values > 0, values, -math.inf), values
    return _numerical_preimages(function, values)


def _numerical_preimages(function: Callable[[Tensor], Tensor], values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``_preimages`` of any activation that falls to one minimum (or none), then rises, by bisection.

    The activation is evaluated in the type of the values, so that rounding and saturation count as they did.
    """
    reach = 1e4
    ends = torch.tensor([-reach, reach], dtype=torch.float64)
    grid = torch.cat([ends[:1], torch.linspace(-50, 50, 100_001, dtype=torch.float64), ends[1:]]).to(values)

    def at(h: Tensor) -> Tensor:
        return function(h.to(values.dtype)).double()

    on_grid = at(grid)
    least, left, top = on_grid.min(), on_grid[0], on_grid[-1]
    v = values.double().clamp(least, top)
    bottom = torch.full_like(v, grid[on_grid <= least][-1].item())
    far = torch.full_like(v, reach)
    low = _bisect(lambda h: at(h) < v, bottom, far)
    high = _bisect(lambda h: at(h) <= v, bottom, far)
    same = high - low <= 1e-4 * (1 + high.abs())
    low = torch.where(same, high, low)
    high = torch.where(v >= top, math.inf, high)
    lowest = torch.full_like(v, -math.inf)
    if left > least:
        falling = -_bisect(lambda h: at(-h) <= v, -bottom, far)
        lowest = torch.where(v < left, falling, lowest)
        low = torch.where(v <= left, lowest, low)
    else:
        low = torch.where(v <= least, -math.inf, low)
    return lowest.to(values), low.to(values), high.to(values)


def _bisect(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a condition that holds up to some point ends, between ``low`` and ``high``."""
    for _ in range(64):
        middle = (low + high) / 2
        below = holds(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
