"""Positions of a feature map and the blocks of pixels that they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


def infer_stride(image: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    """Return the stride of a feature map per axis, from sizes alone.

    Exact where the size of the map divides that of the image. Otherwise borders were lost or gained on the way, and
    the power of two within 20 % of the ratio is taken, or else the nearest whole number.
    """
    strides = []
    for n, m in zip(image, positions, strict=True):
        power = 2 ** round(math.log2(max(n / m, 1.0)))
        near = abs(n / m / power - 1) <= 0.2
        strides.append(n // m if n % m == 0 else power if near else max(1, round(n / m)))
    return tuple(strides)


@dataclass(frozen=True)
class BlockGrid:
    """Position ``i`` of an axis stands for pixels ``i * stride + start`` and the ``stride - 1`` that follow.

    The map is centred on the image. Where it does not reach the border, positions outside of it are added, and
    blocks that reach over the border are cropped.
    """

    image: tuple[int, ...]  # spatial sizes of the image
    positions: tuple[int, ...]  # spatial sizes of the map
    stride: tuple[int, ...]  # pixels per position and axis
    # values per position and axis that are kept of the pixels, at most the stride: means over equal parts
    block: tuple[int, ...]

    @property
    def extra(self) -> tuple[tuple[int, int], ...]:
        """Per axis, positions that are added before the first and after the last one."""
        axes = zip(self.image, self.positions, self.stride, self._starts, strict=True)
        ends = [(start / s, (n - start - m * s) / s) for n, m, s, start in axes]
        return tuple((max(0, math.ceil(before)), max(0, math.ceil(after))) for before, after in ends)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks per axis, the added ones included."""
        return tuple(m + a + b for m, (a, b) in zip(self.positions, self.extra, strict=True))

    @property
    def _starts(self) -> tuple[int, ...]:
        return tuple(int((n - m * s) / 2) for n, m, s in zip(self.image, self.positions, self.stride, strict=True))

    @property
    def _overhang(self) -> tuple[tuple[int, int], ...]:
        # pixels of the grid outside the image, before and after
        firsts = [a * s - start for (a, _), s, start in zip(self.extra, self.stride, self._starts, strict=True)]
        axes = zip(firsts, self.grid, self.stride, self.image, strict=True)
        return tuple((first, g * s - n - first) for first, g, s, n in axes)

    def to_blocks(self, x: Tensor) -> Tensor:
        """Return images, ``(N, C, *image)``, as one vector per position, ``(N, C * prod(block), *grid)``."""
        x = F.pad(x, pad_widths(self._overhang), mode="replicate")
        if self.block != self.stride:
            size = [g * b for g, b in zip(self.grid, self.block, strict=True)]
            x = F.interpolate(x, size, mode="area")
        return space_to_depth(x, self.block)

    def to_image(self, blocks: Tensor) -> Tensor:
        """Return the opposite of ``to_blocks``; coarse blocks are interpolated linearly."""
        x = depth_to_space(blocks, self.block)
        if self.block != self.stride:
            size = [g * s for g, s in zip(self.grid, self.stride, strict=True)]
            x = F.interpolate(x, size, mode=SMOOTH[len(size)], align_corners=False)
        for axis, (n, (before, _)) in enumerate(zip(self.image, self._overhang, strict=True), 2):
            x = x.narrow(axis, before, n)
        return x

    def surround(self, features: Tensor, reach: int) -> Tensor:
        """Return a map with ``reach`` zeros around its grid, and one more channel that is 1 outside of the features."""
        widths = pad_widths([(a + reach, b + reach) for a, b in self.extra])
        outside = F.pad(features.new_zeros(1, 1, *features.shape[2:]), widths, value=1.0)
        padded = F.pad(features, widths)
        return torch.cat([padded, outside.expand(len(features), *outside.shape[1:])], 1)


def largest_divisors(stride: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the largest divisor of each stride that is at most so large."""
    return tuple(max(b for b in range(1, most + 1) if s % b == 0) for s in stride)


def pad_widths(widths: Sequence[tuple[int, int]]) -> list[int]:
    """Return how much is added before and after each axis, in the order of ``F.pad``: the last axis first."""
    return [w for pair in reversed(widths) for w in pair]


def space_to_depth(x: Tensor, block: Sequence[int]) -> Tensor:
    """Blocks of pixels as channels. Shape ``(N, C, *(g * b))`` to ``(N, C * prod(b), *g)``."""
    dims = len(block)
    split = [n for size, b in zip(x.shape[2:], block, strict=True) for n in (size // b, b)]
    x = x.reshape(*x.shape[:2], *split)
    inner, outer = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return x.permute(0, 1, *inner, *outer).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, block: Sequence[int]) -> Tensor:
    """The opposite of ``space_to_depth``. Shape ``(N, C * prod(b), *g)`` to ``(N, C, *(g * b))``."""
    dims = len(block)
    grid = x.shape[2:]
    x = x.reshape(len(x), -1, *block, *grid)
    order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    x = x.permute(0, 1, *order)
    return x.reshape(*x.shape[:2], *[g * b for g, b in zip(grid, block, strict=True)])


def neighbourhoods(padded: Tensor, size: int, chosen: Tensor | None) -> Tensor:
    """Return the surroundings of positions, flattened as a convolution's weight is: ``(positions, C * size^d)``.

    ``padded``: from ``surround``; ``chosen``: flat indices into ``(N, *grid)``, all of them where ``None``.
    """
    view = padded
    for axis in range(2, padded.ndim):
        view = view.unfold(axis, size, 1)
    dims = padded.ndim - 2
    view = view.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    if chosen is None:
        return view.reshape(math.prod(view.shape[: 1 + dims]), -1)
    return view[torch.unravel_index(chosen, view.shape[: 1 + dims])].flatten(1)


def as_map(features: Tensor, image: Sequence[int]) -> Tensor | None:
    """Return features as a map ``(N, C, *positions)`` over the image; ``None`` with fewer than three per axis.

    Channels are taken to come last where only then the map has the proportions of the image; tokens ``(N, L, D)`` are
    laid out on the grid that has them, without class or register tokens (the first ones, up to 5).
    """
    dims = len(image)
    found = None
    if features.ndim == dims + 2:
        first, last = features.shape[2:], features.shape[1:-1]
        found = features.movedim(-1, 1) if _distortion(last, image) < _distortion(first, image) - 0.2 else features
    elif features.ndim == 3:
        length = features.shape[1]
        for extra, stride in itertools.product(range(6), range(1, max(image) + 1)):
            positions = [n // stride for n in image]
            if math.prod(positions) == length - extra:
                found = features[:, extra:].mT.reshape(len(features), -1, *positions)
                break
    if found is None or max(found.shape[2:]) < 3 or _distortion(found.shape[2:], image) > 1:
        return None
    return found


def _distortion(positions: Sequence[int], image: Sequence[int]) -> float:
    # spread of log(stride) over the axes; a map larger than the image is none
    ratios = [math.log(n / m) for n, m in zip(image, positions, strict=True)]
    return max(ratios) - min(ratios) + (10.0 if max(m / n for n, m in zip(image, positions)) > 1.5 else 0.0)
