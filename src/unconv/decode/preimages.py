"""Pre-activations from activations: the interval, or the one value, that an activation can come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unconv.conv_block import Activation

REACH = 1e4  # pre-activations beyond this count as infinite


def preimage_bounds(activation: Activation, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower bound of ``{f(h) <= v}``, and both bounds of ``{f(h) = v}``, of the shape of ``values``.

    The last two agree where the value determines the pre-activation.
    """
    nothing = torch.full_like(values, -math.inf)
    if activation.name == "none":
        return nothing, values, values
    if activation.name == "relu":
        return nothing, torch.where(values > 0, values, -math.inf), values
    return _numerical_bounds(activation.function, values)


def _numerical_bounds(function: Callable[[Tensor], Tensor], values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bounds for any activation that falls to one minimum (or none), then rises, by bisection."""
    ends = torch.tensor([-REACH, REACH], dtype=torch.float64)
    grid = torch.cat([ends[:1], torch.linspace(-50, 50, 100_001, dtype=torch.float64), ends[1:]]).to(values)

    def f(h: Tensor) -> Tensor:
        # in the type of the values, so that rounding and saturation count as they did
        return function(h.to(values.dtype)).double()

    on_grid = f(grid)
    least, left, top = on_grid.min(), on_grid[0], on_grid[-1]
    v = values.double().clamp(least, top)
    bottom = torch.full_like(v, grid[on_grid <= least][-1].item())
    far = torch.full_like(v, REACH)
    # the rising branch
    low = _bisect(lambda h: f(h) < v, bottom, far)
    high = _bisect(lambda h: f(h) <= v, bottom, far)
    low = torch.where(high - low <= 1e-4 * (1 + high.abs()), high, low)
    high = torch.where(v >= top, math.inf, high)
    # the falling branch, where there is one
    lowest = torch.full_like(v, -math.inf)
    if left > least:
        falling = -_bisect(lambda h: f(-h) <= v, -bottom, far)
        lowest = torch.where(v < left, falling, lowest)
        low = torch.where(v <= left, lowest, low)
    else:
        low = torch.where(v <= least, -math.inf, low)
    return lowest.to(values), low.to(values), high.to(values)


def _bisect(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return where a condition that holds up to some point ends, between ``low`` and ``high``."""
    for _ in range(64):
        middle = (low + high) / 2
        below = holds(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
