"""Unions of subspaces, the projection onto them, and the code that it leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.errors import UsageError, check_whole
from unconv.linalg import column
from unconv.operators import per_axis

CodeKind = Literal["network", "paper"]
"""What a block computes (signed pooling behind its activation), or ``M_known(W x, k)`` with unit filters (Table 3)."""


@dataclass(frozen=True)
class Window:
    """The regions of a pooling: a window that slides over each channel's map."""

    kernel: tuple[int, ...]  # size of the window, one number per spatial axis
    stride: tuple[int, ...]  # step between windows; overlapping where it is smaller than the kernel
    padding: tuple[int, ...]  # places added on both sides that never win
    dilation: tuple[int, ...]  # step between the places of one window
    ceil_mode: bool = False  # whether a last, partial window covers what the stride leaves over

    @staticmethod
    def of(
        dims: int,
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Window:
        """Return a window with its numbers spelled out per axis (``stride``: the kernel where ``None``), checked."""
        sizes = per_axis(kernel, dims, "pooling region")
        window = Window(
            sizes,
            sizes if stride is None else per_axis(stride, dims, "pooling stride"),
            per_axis(padding, dims, "pooling padding"),
            per_axis(dilation, dims, "pooling dilation"),
            ceil_mode,
        )
        if min(window.kernel) < 1 or min(window.stride) < 1 or min(window.dilation) < 1:
            raise UsageError(f"pooling region, stride and dilation must be at least 1, not {window}")
        if any(p < 0 or 2 * p > k for p, k in zip(window.padding, window.kernel, strict=True)):
            raise UsageError(f"pooling padding {window.padding} must be between 0 and half of the region {sizes}")
        return window

    @property
    def overlapping(self) -> bool:
        """Return whether one place can lie in two regions."""
        return any(d * (k - 1) >= s for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))

    def max_pool(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest entry of each region, and its flat index in the channel's map (ties: the first place)."""
        spatial = tuple(h.shape[2:])
        if self.kernel == spatial and not any(self.padding) and set(self.dilation) == {1}:
            # argmax names the first of equal entries, max_pool does so only within a window's own order
            flat = h.flatten(2)
            switches = flat.argmax(dim=2, keepdim=True)
            ones = (1,) * len(spatial)
            return flat.gather(2, switches).unflatten(2, ones), switches.unflatten(2, ones)
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(spatial)]
        try:
            return pool(h, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, return_indices=True)
        except RuntimeError:
            self.starts(spatial)  # says what is wrong where the map is smaller than a region
            raise

    def pooled_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the number of regions along each axis of a map."""
        return tuple(len(starts) for starts in self.starts(spatial))

    def starts(self, spatial: Sequence[int]) -> list[list[int]]:
        """Return the first place of each region along each axis, before clipping to the map (negative in padding)."""
        result = []
        for n, k, s, p, d in zip(spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            room = n + 2 * p - d * (k - 1) - 1
            if room < 0:
                raise UsageError(f"map {tuple(spatial)} is smaller than the pooling region {self.kernel}")
            count = (math.ceil(room / s) if self.ceil_mode else room // s) + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            result.append([i * s - p for i in range(count)])
        return result

    def corners(self, spatial: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Return the flat index of each region's first place inside the map (``M_fixed``'s switches), int64."""
        places, inside = self.places(spatial, device)
        return places.gather(0, inside.int().argmax(0, keepdim=True)).reshape(self.pooled_shape(spatial))

    def contains(self, switches: Tensor, spatial: Sequence[int]) -> Tensor:
        """Return whether each switch, shape ``(N, K, *pooled)``, lies in its own region; bool, of the same shape."""
        places, inside = self.places(spatial, switches.device)
        return ((switches.flatten(2)[:, :, None] == places) & inside).any(2).reshape(switches.shape)

    def places(self, spatial: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return the flat place of every tap in every region, and whether it is on the map. Shapes (taps, regions)."""
        dims = len(spatial)
        index, inside = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool)
        for axis, (n, starts) in enumerate(zip(spatial, self.starts(spatial), strict=True)):
            taps = self.dilation[axis] * torch.arange(self.kernel[axis])
            # kernel axes first, then region axes, so that all broadcast to (*kernel, *regions)
            shape = [1] * (2 * dims)
            shape[axis], shape[dims + axis] = self.kernel[axis], len(starts)
            place = (taps[:, None] + torch.tensor(starts)).reshape(shape)
            index, inside = index * n + place, inside & (place >= 0) & (place < n)
        index, inside = index.to(device), inside.to(device)
        return index.flatten(0, dims - 1).flatten(1), inside.flatten(0, dims - 1).flatten(1)


Region = int | tuple[int, ...] | Window | Literal["map"]
"""A pooling region: its size, a ``Window``, or ``"map"`` for one region per channel, as in the theory."""


@dataclass(frozen=True)
class AveragePool:
    """Average pooling: one linear equation per region instead of a switch."""

    window: Window
    count_include_pad: bool = True  # whether places in the padding count in the mean

    def forward(self, h: Tensor) -> Tensor:
        """Return the mean of each region. Shape ``(N, K, *spatial)`` to ``(N, K, *pooled)``."""
        w = self.window
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[h.ndim - 2]
        try:
            return pool(h, w.kernel, w.stride, w.padding, w.ceil_mode, self.count_include_pad)
        except RuntimeError:
            w.starts(h.shape[2:])  # says what is wrong where the map is smaller than a region
            raise

    def adjoint(self, pooled: Tensor, spatial: Sequence[int]) -> Tensor:
        """Return the transpose of ``forward``: each value spread over its region with the mean's weights."""
        zero = torch.zeros((*pooled.shape[:2], *spatial), dtype=pooled.dtype, device=pooled.device)
        return torch.func.vjp(self.forward, zero)[1](pooled)[0]


@dataclass(frozen=True)
class Code:
    """What a layer leaves behind for a batch of inputs.

    Attributes:
        values: Pooled values. Shape ``(N, K, *pooled)``; equal to the dense activation where nothing pools.
        switches: Flat index of each value's place in its channel's map, same shape, int64; ``None`` where
            nothing pools or the pooling averages.
        shape: Shape of the dense activation, ``(K, *spatial)``.
        pooling: The regions, or ``None``.
    """

    values: Tensor
    switches: Tensor | None
    shape: tuple[int, ...]
    pooling: Window | AveragePool | None = None

    def __repr__(self) -> str:
        kind = {type(None): "dense", Window: "max-pooled", AveragePool: "average-pooled"}[type(self.pooling)]
        nonzero = 100 * (self.values != 0).double().mean().item()
        return f"Code({kind} {tuple(self.values.shape)} of {self.shape}, {nonzero:.1f} % non-zero)"

    def dense(self) -> Tensor:
        """Return the dense form ``(N, K, *spatial)``: every value at its switch, or averages spread back."""
        spatial = self.shape[1:]
        if isinstance(self.pooling, AveragePool):
            return self.pooling.adjoint(self.values, spatial)
        if self.switches is None:
            return self.values
        flat = self.values.new_zeros(*self.values.shape[:2], math.prod(spatial))
        places, values = self.switches.flatten(2), self.values.flatten(2)
        if isinstance(self.pooling, Window) and self.pooling.overlapping:
            # regions that share a place hold the same value; one may have been dropped, and its zero must not win
            above, below = (flat.scatter_reduce(2, places, values, reduce) for reduce in ("amax", "amin"))
            return (above + below).unflatten(2, spatial)
        return flat.scatter_(2, places, values).unflatten(2, spatial)

    def support(self) -> Tensor:
        """Return the places of the non-zero values, shape ``(N, K, *spatial)``, bool; averages have none."""
        if isinstance(self.pooling, AveragePool):
            raise UsageError("an average-pooled code has no switches, so no support; use dense() instead")
        return self.dense() != 0

    def with_fixed_switches(self) -> Code:
        """Return the same values at the first place of each region (``M_fixed``); UsageError without max pooling."""
        if not isinstance(self.pooling, Window) or self.switches is None:
            raise UsageError("this code has no max pooling, so no switches to replace")
        corners = self.pooling.corners(self.shape[1:], self.values.device)
        return replace(self, switches=corners.expand(self.values.shape).contiguous())

    def check_switches(self) -> None:
        """Raise UsageError if a switch lies outside of its region."""
        if isinstance(self.pooling, Window) and self.switches is not None:
            outside = (~self.pooling.contains(self.switches, self.shape[1:])).nonzero()
            if len(outside):
                where = tuple(outside[0].tolist())
                raise UsageError(f"switch {int(self.switches[where])} at {where} lies outside its region")

    def with_values(self, z: Tensor) -> Code:
        """Return the code at the same places whose dense form is ``z``, which is zero off this code's support."""
        if self.switches is None:
            return replace(self, values=z)
        return replace(self, values=z.flatten(2).gather(2, self.switches.flatten(2)).reshape(self.values.shape))

    def where(self, mask: Tensor, other: Code) -> Code:
        """Return this code for the inputs of a mask, shape ``(N,)``, and another of the same shapes for the rest."""
        chosen = column(mask, self.values)
        values = torch.where(chosen, self.values, other.values)
        if self.switches is None or other.switches is None:
            return replace(self, values=values)
        return replace(self, values=values, switches=torch.where(chosen, self.switches, other.switches))


class SparsityModel(Protocol):
    """A union of subspaces, given by the projection onto it."""

    def project(self, h: Tensor) -> Code:
        """Return the nearest (or structured nearest) point. Shape ``(N, K, *spatial)`` to a code of that shape."""
        ...


@dataclass(frozen=True)
class TopK:
    """All vectors with at most ``k`` non-zeros.

    Attributes:
        k: Number of entries kept per input; the largest in magnitude, ties to the lowest flat index.

    Example:
        >>> import torch
        >>> from unconv import TopK
        >>> TopK(2).project(torch.tensor([[[3.0, 1.0, 0.0, -4.0]]])).dense()
        tensor([[[ 3.,  0.,  0., -4.]]])
    """

    k: int

    def __post_init__(self) -> None:
        check_whole(0, k=self.k)

    def project(self, h: Tensor) -> Code:
        """Keep the ``k`` entries of largest magnitude of each input ``(N, K, *spatial)``: a code without pooling."""
        return Code(keep_largest(h, self.k), None, tuple(h.shape[1:]))


@dataclass(frozen=True)
class Pooled:
    """At most one non-zero per region, and at most ``k`` in all (the paper's model-k-sparse vectors).

    ``project`` is the paper's structured sparse approximation M(h, k) with the switches of its own pooling
    (``M_known``); ``project(h).with_fixed_switches()`` is ``M_fixed``. For regions that do not overlap and
    ``signed=False`` it is the exact projection; where they overlap, a place may win twice.

    Attributes:
        region: Size of the window, a ``Window``, or ``"map"`` for one region per channel, as in the theory.
        k: Number of regions kept per input; all where ``None``.
        signed: Whether the largest entry wins (a network's max pooling) instead of the largest magnitude.

    Example:
        >>> import torch
        >>> from unconv import Pooled
        >>> code = Pooled(2, k=1).project(torch.tensor([[[3.0, -1.0, 0.0, -4.0]]]))
        >>> code.values, code.switches
        (tensor([[[ 0., -4.]]]), tensor([[[0, 3]]]))
        >>> code.dense()
        tensor([[[ 0.,  0.,  0., -4.]]])
        >>> code.with_fixed_switches().dense()
        tensor([[[ 0.,  0., -4.,  0.]]])
    """

    region: Region
    k: int | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        sizes = self.region if isinstance(self.region, tuple | list) else (self.region,)
        named = isinstance(self.region, Window) or self.region == "map"
        if not named and not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise UsageError(f"region is {self.region!r}; give its size, at least 1, a Window, or 'map'")
        check_whole(0, k=self.k)

    def window(self, spatial: Sequence[int]) -> Window:
        """Return the regions on maps of one size."""
        if isinstance(self.region, Window):
            return self.region
        return Window.of(len(spatial), tuple(spatial) if self.region == "map" else self.region)

    def project(self, h: Tensor) -> Code:
        """Pool, and keep the ``k`` values of largest magnitude of each input ``(N, K, *spatial)``; gives switches."""
        spatial = tuple(h.shape[2:])
        window = self.window(spatial)
        values, switches = window.max_pool(h if self.signed else h.abs())
        if not self.signed:
            values = h.flatten(2).gather(2, switches.flatten(2)).reshape(values.shape)
        if self.k is not None:
            values = keep_largest(values, self.k)
        return Code(values, switches, tuple(h.shape[1:]), window)


def keep_largest(values: Tensor, k: int) -> Tensor:
    """Zero all but the ``k`` entries of largest magnitude of each input; ties go to the lowest flat index."""
    check_whole(0, k=k)
    flat = values.flatten(1)
    if k >= flat.shape[1]:
        return values
    if k == 0:
        return torch.zeros_like(values)
    size = flat.abs()
    threshold = _kth_largest(size, k)
    keep = size >= threshold
    if keep.count_nonzero() > k * len(flat):
        ties = size == threshold
        keep &= ~ties
        keep |= ties & (ties.cumsum(1) <= k - keep.sum(1, keepdim=True))
    # a product is five times as fast as a selection here, but turns infinities that are dropped into NaN
    kept = flat * keep if threshold.isfinite().all() else torch.where(keep, flat, 0.0)
    return kept.reshape(values.shape)


def _kth_largest(size: Tensor, k: int) -> Tensor:
    """Return the k-th largest of each row, shape ``(N, 1)``, for rows without negative entries."""
    n = size.shape[1]
    if size.device.type != "cpu" or size.dtype not in {torch.float32, torch.float64}:
        return size.kthvalue(n - k + 1, dim=1, keepdim=True).values
    # numpy's vectorised selection is an order of magnitude faster than torch's; floats without a sign order as
    # their bits do, and integers have no NaN to look for
    bits = size.contiguous().view(torch.int32 if size.dtype == torch.float32 else torch.int64).numpy()
    kth = np.partition(bits, n - k, axis=1)[:, n - k : n - k + 1].copy()
    return torch.from_numpy(kth).view(size.dtype)
