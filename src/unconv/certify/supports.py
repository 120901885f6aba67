"""The union of subspaces behind model-RIP on one map: which places compete, and how many supports there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from unconv.errors import UnconvError
from unconv.operators import Boundary, ConvOperator, check_convolution
from unconv.sparsity import Pooled, Region


@dataclass(frozen=True)
class BlockPartition:
    """The blocks of one channel: a support holds at most one place of each (two, for sums of two vectors)."""

    # per axis, the block of each place, -1 for none; places share a block if all their labels agree
    labels: tuple[tuple[int, ...], ...]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size of the map."""
        return tuple(len(axis) for axis in self.labels)

    @property
    def count(self) -> int:
        """Number of blocks of one channel."""
        return math.prod(max(axis) + 1 for axis in self.labels)

    @cached_property
    def flat(self) -> Tensor:
        """Block of each place of the flattened map, -1 for none. Shape ``(places,)``, int64."""
        label, inside = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
        for axis in self.labels:
            here = torch.tensor(axis)
            label = (label[:, None] * (max(axis) + 1) + here).flatten()
            inside = (inside[:, None] & (here >= 0)).flatten()
        return torch.where(inside, label, -1)

    @cached_property
    def members(self) -> Tensor:
        """Flat places of each block, padded with -1. Shape ``(count, largest block)``, int64."""
        places = (self.flat >= 0).nonzero().flatten()
        label = self.flat[places]
        order = label.argsort(stable=True)
        places, label = places[order], label[order]
        sizes = torch.bincount(label, minlength=self.count)
        first = sizes.cumsum(0) - sizes
        table = torch.full((self.count, int(sizes.max())), -1)
        table[label, torch.arange(len(label)) - first[label]] = places
        return table

    def size(self, channels: int, k: int, *, twice: bool = False) -> int:
        """Number of entries of a maximal support."""
        most = 2 if twice else 1
        return min(most * k, channels * int((self.members >= 0).sum(1).clamp_max(most).sum()))

    def supports(self, channels: int, k: int, *, twice: bool = False) -> int:
        """Number of maximal supports, i.e. of subspaces that no other of the union contains."""
        want = self.size(channels, k, twice=twice)
        ways = [1]
        for size, blocks in Counter((self.members >= 0).sum(1).tolist()).items():
            # (1 + size x + binom(size, 2) x^2) ** (channels * blocks), the last term only for sums of two
            power = [0] * (want + 1)
            for pairs in range(min(want // 2, channels * blocks) + 1 if twice else 1):
                for singles in range(want + 1 - 2 * pairs):
                    blocks_used = math.comb(channels * blocks, pairs) * math.comb(channels * blocks - pairs, singles)
                    power[2 * pairs + singles] += blocks_used * math.comb(size, 2) ** pairs * size**singles
                    if not blocks_used:
                        break
            ways = [sum(ways[i] * power[j - i] for i in range(min(j + 1, len(ways)))) for j in range(want + 1)]
        return ways[want]

    def project(self, h: Tensor, k: int, *, twice: bool = False) -> Tensor:
        """Nearest point of the union: the largest entry of each block (two if ``twice``), then the largest of those."""
        members = self.members.to(h.device)
        flat = h.flatten(2)
        size = flat.abs()[:, :, members.clamp_min(0)].masked_fill(members < 0, -1.0)
        best, which = size.topk(min(2 if twice else 1, members.shape[1]), dim=3)
        place = members.expand(*which.shape[:2], -1, -1).gather(3, which)
        place = place.clamp_min(0) + torch.arange(h.shape[1], device=h.device)[:, None, None] * flat.shape[2]
        kept = best.flatten(1).topk(self.size(h.shape[1], k, twice=twice), dim=1).indices
        index = place.flatten(1).gather(1, kept)
        out = torch.zeros_like(flat).flatten(1)
        return out.scatter_(1, index, h.flatten(1).gather(1, index)).reshape(h.shape)


def inner_partition(region: Region, spatial: Sequence[int]) -> BlockPartition:
    """Return blocks whose supports are admissible for sure.

    Regions that do not overlap are the blocks. Where they overlap, the blocks are single places no two of
    which share a region, so that every reading of "one non-zero per region" admits their supports.
    """

    def disjoint(owners: list[list[int]]) -> list[int]:
        axis, taken = [], -1
        for owner in owners:
            free = bool(owner) and min(owner) > taken
            axis.append(max(axis, default=-1) + 1 if free else -1)
            taken = max(owner) if free else taken
        return axis

    return _partition(region, spatial, disjoint)


def outer_partition(region: Region, spatial: Sequence[int]) -> BlockPartition:
    """Return blocks that admit every support that the regions admit.

    Regions that do not overlap are the blocks. Where they overlap along an axis, every place of that axis is
    a block of its own: more supports than the model has, so an upper bound over them holds for the model.
    """

    def apart(owners: list[list[int]]) -> list[int]:
        covered = iter(range(len(owners)))
        return [next(covered) if owner else -1 for owner in owners]

    return _partition(region, spatial, apart)


def separate_regions(region: Region, spatial: Sequence[int]) -> BlockPartition | None:
    """Return the regions as blocks, which their supports then are exactly; ``None`` where regions overlap."""
    blocks = outer_partition(region, spatial)
    return blocks if blocks == inner_partition(region, spatial) else None


def group_operators(operator: ConvOperator) -> list[ConvOperator]:
    """Return the operator of each channel group: no row of one meets a row of another."""
    shape, geometry = (operator.weight.shape[1], *operator.input_shape[1:]), operator.geometry | {"groups": 1}
    return [ConvOperator(weight, shape, **geometry) for weight in operator.weight.chunk(operator.groups)]


def check_rows(weight: Tensor, what: str) -> None:
    """Refuse filters, or rows, that are zero or not finite (``UnconvError``)."""
    size = weight.flatten(1).abs().amax(1)
    if not torch.isfinite(size).all():
        raise UnconvError(f"{what} {int((~torch.isfinite(size)).nonzero()[0])} is not finite; check the weights")
    if (size == 0).any():
        zero = (size == 0).nonzero().flatten().tolist()
        raise UnconvError(
            f"{what} {zero[0]} of {len(size)} is zero ({len(zero)} are): delta is at least 1 with it; leave it out"
        )


def check_k(k: int, total: int) -> None:
    """Refuse a number of blocks in use that there are not (``UnconvError``)."""
    if not isinstance(k, Integral) or not 1 <= k <= total:
        raise UnconvError(
            f"k is {k!r}; it counts the blocks in use, so it is an integer from 1 to their number, {total}"
        )


def validate_operator(operator: ConvOperator, region: Region, k: int, boundary: Boundary) -> ConvOperator:
    """Check the arguments of a model-RIP question, and give the operator that it asks about."""
    check_convolution(operator, ", or ask delta_bracket")
    bounded = operator.at(boundary)
    check_rows(operator.weight, "filter")
    spatial = operator.output_shape[1:]
    check_k(k, operator.output_shape[0] * math.prod(Pooled(region).window(spatial).pooled_shape(spatial)))
    return bounded.to(torch.float64)


def _partition(
    region: Region, spatial: Sequence[int], overlapping: Callable[[list[list[int]]], list[int]]
) -> BlockPartition:
    """Return the regions as blocks; along an axis where they overlap, what a function makes of each place's regions."""
    window = Pooled(region).window(tuple(spatial))
    labels = []
    for n, size, dilation, starts in zip(spatial, window.kernel, window.dilation, window.starts(spatial), strict=True):
        owners: list[list[int]] = [[] for _ in range(n)]
        for index, start in enumerate(starts):
            for place in range(start, start + dilation * size, dilation):
                if 0 <= place < n:
                    owners[place].append(index)
        alone = max(map(len, owners)) <= 1
        labels.append(tuple([min(o, default=-1) for o in owners] if alone else overlapping(owners)))
    return BlockPartition(tuple(labels))
