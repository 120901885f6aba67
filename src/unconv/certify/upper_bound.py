"""Certified upper bounds on the model-RIP constants of a layer, and their bracket.

``delta_k`` is the smallest ``d`` with ``(1 - d) ||z||^2 <= ||W^T z||^2 <= (1 + d) ||z||^2`` for all model-k-sparse
``z``; ``delta_2k`` the same over sums of two such vectors (paper, section 1). With ``G = W W^T`` and ``G_S`` its
part on a support ``S``, ``delta`` is the largest ``max(lambda_max(G_S) - 1, 1 - lambda_min(G_S))`` over supports.
``W`` is never formed: all bounds come from the table of filter correlations at all shifts, and hold whatever the
rounding, for products summed in any order (no Winograd or Fourier convolution: none is used in float64 on a CPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.certify.correlations import (
    CHUNK,
    FINE_GRID,
    Table,
    estimated_eigenvalue,
    largest_eigenvalue,
    outward,
    outward_all,
    table_error,
    table_of,
)
from unconv.certify.exact import exact_delta
from unconv.certify.lower_bound import LowerBound, lower_bound
from unconv.certify.supports import (
    BlockPartition,
    Boundary,
    Region,
    inner_partition,
    outer_partition,
    regions,
    support_size,
    validate_operator,
)
from unconv.operators import ConvOperator

MOST_PROVEN = 64  # regions in use up to which ``largest_k`` looks


@dataclass(frozen=True)
class UpperBound:
    """A proven upper bound on a model-RIP constant.

    Attributes:
        value: The bound.
        above: Bound on ``lambda_max(G_S) - 1`` over all supports.
        below: Bound on ``1 - lambda_min(G_S)``, at most 1 since ``G_S`` is positive semidefinite.
        how: Which argument gave ``above``: ``"gershgorin"``, ``"spectral"`` or ``"thresholded"``.
        bounds: ``lambda_max(G_S) - 1`` by each argument that was tried.
    """

    value: float
    above: float
    below: float
    how: str
    bounds: dict[str, float]


@dataclass(frozen=True)
class Bracket:
    """What is known about a model-RIP constant.

    Attributes:
        lower: LowerBound by ``witness``.
        upper: Proven.
        witness: A ``z`` of the model with ``| ||W^T z||^2 / ||z||^2 - 1 | >= lower``. Shape ``(K, *spatial)``, float64.
        how: What gave the two, e.g. ``"attacked, gershgorin"``, or ``"enumerated"``.
    """

    lower: float
    upper: float
    witness: Tensor
    how: str


def delta_bracket(
    operator: ConvOperator,
    region: Region,
    k: int,
    *,
    twice: bool = False,
    boundary: Boundary = "full",
    effort: float = 1.0,
    seed: int = 0,
) -> Bracket:
    """Lower and upper bound on ``delta_k`` of the operator as it is (normalise it first for unit filters).

    Args:
        operator: The convolution.
        region: Pooling region, or ``"map"`` for one region per channel, as in the theory.
        k: Number of regions in use.
        twice: Whether to bracket ``delta_2k``, the constant over sums of two vectors.
        boundary: ``"full"`` (``W^T`` keeps its whole output, as in the paper) or ``"cropped"`` (to the input).
        effort: Work of the search for the lower bound, in units of some seconds on two cores.
        seed: Seed of the search.

    Returns:
        The bracket; the two agree up to rounding where the subspaces are few enough to enumerate.

    Raises:
        UnconvError: If a filter is zero or not finite, or ``k`` is not between 1 and the number of regions.
        UsageError: If there is no such boundary.
    """
    full = validate_operator(operator, region, k, boundary)
    around = outer_partition(region, full.output_shape[1:])
    channels = full.output_shape[0]
    size = support_size(around, channels, k, twice=twice)
    upper = upper_bound(operator, region, k, twice=twice, boundary=boundary)
    lower: LowerBound = lower_bound(operator, region, k, twice=twice, boundary=boundary, effort=effort, seed=seed)
    how = f"attacked, {upper.how}"
    value = upper.value
    few = size <= 64 and around.supports(channels, k, twice=twice) * size**3 <= 1e7 * effort
    if few and around == inner_partition(region, around.spatial):
        found = exact_delta(operator, region, k, twice=twice, boundary=boundary)
        if found.ceiling <= value:
            value, how = found.ceiling, "enumerated"
        if found.attained.delta > lower.delta:
            lower = found.attained
    return Bracket(lower.delta, value, lower.witness, how)


def upper_bound(
    operator: ConvOperator,
    region: Region,
    k: int,
    *,
    twice: bool = False,
    boundary: Boundary = "full",
    refine: bool = True,
) -> UpperBound:
    """Certified upper bound on ``delta_k`` (``delta_2k`` if ``twice``) of the operator as it is.

    Three arguments, the best of which counts, each with all rounding errors added outward:

    - *Gershgorin*: an eigenvalue of ``G_S`` is no farther from a diagonal entry than the sum of the other
      magnitudes in its row; over all supports, the sum of the largest block-wise maxima of the table.
    - *spectral*: ``lambda_max(G_S) <= lambda_max(G)``, at most the largest eigenvalue of the symbol of ``G``.
    - *thresholded*: ``G = P + N`` with ``N`` the entries clipped to ``[-r, r]``: the spectral bound of ``P`` plus
      Gershgorin's of ``N``, the best of several ``r``. (Any ``r`` gives a feasible point of the dual of the
      semidefinite relaxation of sparse principal components, d'Aspremont et al. 2007.) For whole maps, entries
      between places of one channel never meet and are left out of both.

    A cropped ``W^T z`` is a part of the full one, so ``above`` of the full boundary holds for the cropped one.

    Args:
        operator: The convolution.
        region: Pooling region, or ``"map"`` for one region per channel.
        k: Number of regions in use.
        twice: Whether to bound the constant over sums of two vectors.
        boundary: ``"full"`` or ``"cropped"``.
        refine: Whether to try the third argument, which takes most of the time.

    Returns:
        The bound. Beyond 1 it says nothing about invertibility.

    Raises:
        UnconvError: If a filter is zero or not finite, or ``k`` is not between 1 and the number of regions.
        UsageError: If there is no such boundary.
    """
    given = validate_operator(operator, region, k, boundary)
    blocks = outer_partition(region, given.output_shape[1:])
    # no row meets one of another group, so each group is bounded alone, with as much of the support as it can hold
    return _worst([_Group(part, blocks).bound(k, twice=twice, refine=refine) for part in _groups(given)])


@dataclass(frozen=True)
class LayerBounds:
    """What is proven about one layer at the full boundary.

    Attributes:
        single: Upper bound on ``delta_k``.
        double: Upper bound on ``delta_2k``, at least that on ``delta_k``.
        largest_k: The largest number of regions in use, up to 64, for which ``delta_k < 1`` is proven by the first
            argument; 0 where it is not even for one.
    """

    single: UpperBound
    double: UpperBound
    largest_k: int


def layer_bounds(operator: ConvOperator, region: Region, k: int, *, refine: bool = True) -> LayerBounds:
    """Certified upper bounds on ``delta_k`` and ``delta_2k`` at once, and how far ``delta < 1`` is proven.

    Args:
        operator: The convolution.
        region: Pooling region, or ``"map"`` for one region per channel.
        k: Number of regions in use.
        refine: As for ``upper_bound``.

    Returns:
        The bounds.

    Raises:
        UnconvError: If a filter is zero or not finite, or ``k`` is not between 1 and the number of regions.
    """
    given = validate_operator(operator, region, k, "full")
    blocks = outer_partition(region, given.output_shape[1:])
    groups = [_Group(part, blocks) for part in _groups(given)]
    single, double = (
        _worst([group.bound(k, twice=twice, refine=refine) for group in groups]) for twice in (False, True)
    )
    proven = min(group.largest_k(MOST_PROVEN) for group in groups)
    return LayerBounds(single, double, min(regions(operator, region), proven))


def _groups(operator: ConvOperator) -> list[ConvOperator]:
    # the operator of each channel group
    shape = (operator.weight.shape[1], *operator.input_shape[1:])
    return [
        ConvOperator(part, shape, stride=operator.stride, padding=operator.padding, dilation=operator.dilation)
        for part in operator.weight.chunk(operator.groups)
    ]


def _worst(bounds: list[UpperBound]) -> UpperBound:
    # over groups of channels, whose rows do not meet
    worst = max(bounds, key=lambda bound: bound.above)
    below = max(bound.below for bound in bounds)
    # an argument bounds the whole operator where it bounds every group
    shared = [name for name in worst.bounds if all(name in bound.bounds for bound in bounds)]
    by_argument = {name: max(bound.bounds[name] for bound in bounds) for name in shared}
    return replace(worst, value=max(worst.above, below), below=below, bounds=by_argument)


@dataclass(frozen=True)
class _Group:
    """The rows of one group of channels, which may hold as much of the support as they can, and what is asked of them.

    Attributes:
        given: The operator of the group.
        blocks: The blocks of one channel.
    """

    given: ConvOperator
    blocks: BlockPartition

    @cached_property
    def table(self) -> Table:
        return table_of(self.given.full())

    @cached_property
    def magnitudes(self) -> Tensor:
        return self.table.values.abs() + self.table.error[(..., *[None] * self.given.dims)]

    @cached_property
    def classes(self) -> list[list[list[int]]]:
        return _shift_classes(self.blocks, self.table.reach)

    @cached_property
    def spectral(self) -> float:
        return largest_eigenvalue(self.table, self.blocks.spatial, nonnegative=True) - 1

    def bound(self, k: int, *, twice: bool, refine: bool) -> UpperBound:
        """The best bound on what a support of ``k`` regions (sums of two such vectors if ``twice``) can do."""
        size = support_size(self.blocks, len(self.given.weight), k, twice=twice)
        radius = _radius(self.magnitudes, self.classes, size, twice=twice)
        squares, slack = self.table.squares, self.table.error.diagonal()
        bounds = {"gershgorin": outward((squares + slack - 1 + radius).max().item(), size)}
        below = outward((1 - squares + slack + radius).max().item(), size)
        bounds["spectral"] = self.spectral
        if refine:
            apart = not twice and max(map(len, map(set, self.blocks.labels))) == 1
            best = min(bounds.values())
            bounds |= _thresholded(self.table, self.blocks, self.classes, size, best, twice=twice, apart=apart)
        how = min(bounds, key=lambda name: bounds[name])
        above = max(bounds[how], 0.0)
        if any(self.given.padding):
            below = 1.0
            if above < 1:
                near, far = _cropped_sides(self.given, self.classes, self.table.reach, size, twice=twice)
                above, below = min(above, max(near, 0.0)), far
        below = min(max(below, 0.0), 1.0)
        return UpperBound(max(above, below), above, below, how, bounds)

    def largest_k(self, most: int) -> int:
        """The largest ``k`` up to ``most`` for which Gershgorin's argument alone proves ``delta_k < 1``."""
        squares, slack = self.table.squares, self.table.error.diagonal()
        room = 1 - torch.maximum(squares - 1, 1 - squares) - slack
        proven = most
        for start, rivals in _rivals(self.magnitudes, self.classes, most, twice=False):
            sums = torch.cat([torch.zeros(len(rivals), 1, dtype=rivals.dtype), rivals.cumsum(1)], 1)
            below = (outward_all(sums, most) < room[start : start + len(sums), None]).all(0)
            if not below.all():
                proven = min(proven, int(below.int().argmin()))
        return proven


def _shift_classes(blocks: BlockPartition, reach: tuple[int, ...]) -> list[list[list[int]]]:
    """How the shifts around a place fall into blocks, for every kind of place."""
    axes = []
    for labels, far in zip(blocks.labels, reach, strict=True):
        seen: dict[tuple[int | None, ...], None] = {}
        for place, label in enumerate(labels):
            if label >= 0:
                around = range(place - far, place + far + 1)
                seen[tuple(labels[q] - label if 0 <= q < len(labels) and labels[q] >= 0 else None for q in around)] = (
                    None
                )
        kinds = list(seen)
        axes.append([a for a in kinds if not any(a != b and _contains(b, a) for b in kinds)])
    strides = [math.prod(2 * r + 1 for r in reach[i + 1 :]) for i in range(len(reach))]
    classes = []
    for kind in product(*axes):
        groups: dict[tuple[int, ...], list[int]] = {(0,) * len(reach): []}
        for shift in product(*(range(2 * r + 1) for r in reach)):
            label = tuple(axis[s] for axis, s in zip(kind, shift, strict=True))
            if None not in label:
                flat = sum(s * stride for s, stride in zip(shift, strides, strict=True))
                groups.setdefault(label, []).append(flat)  # pyright: ignore[reportArgumentType]
        classes.append(list(groups.values()))
    return classes


def _contains(larger: tuple[int | None, ...], smaller: tuple[int | None, ...]) -> bool:
    return all(b is None or a == b for a, b in zip(larger, smaller, strict=True))


def _radius(size: Tensor, classes: list[list[list[int]]], count: int, *, twice: bool) -> Tensor:
    """Largest sum of the off-diagonal magnitudes in a row of ``G_S`` over supports of ``count`` entries.

    ``size`` holds bounds on the magnitudes, ``(K, K, *shifts)``.
    """
    best = torch.zeros(len(size), dtype=size.dtype)
    for start, rivals in _rivals(size, classes, count, twice=twice):
        rows = slice(start, start + len(rivals))
        best[rows] = torch.maximum(best[rows], rivals.sum(1))
    return best


def _rivals(size: Tensor, classes: list[list[list[int]]], count: int, *, twice: bool) -> Iterator[tuple[int, Tensor]]:
    """The largest magnitudes that can stand beside the diagonal in a row of ``G_S``, for every kind of place.

    ``size`` holds bounds on the magnitudes, ``(K, K, *shifts)``.
    """
    flat = size.flatten(2)
    channels = flat.shape[1]
    centre = flat.shape[2] // 2
    most = 2 if twice else 1
    for groups in classes:
        step = max(1, CHUNK // (channels * max(len(groups) * most, flat.shape[2])))
        for start in range(0, len(flat), step):
            part = flat[start : start + step].clone()
            here = torch.arange(len(part))
            own = here + start
            part[here, own, centre] = 0
            columns = []
            for index, group in enumerate(groups):
                if most == 1:
                    top = part[:, :, group].amax(2, keepdim=True)
                else:
                    top = part[:, :, group].topk(min(most, len(group)), dim=2).values.clone()
                if index == 0:
                    # the row's own place already takes one of its block's entries
                    top[here, own, most - 1 :] = 0
                columns.append(top)
            values = torch.cat(columns, 2).flatten(1)
            yield start, values.topk(min(count - 1, values.shape[1]), dim=1).values


def _thresholded(
    table: Table,
    blocks: BlockPartition,
    classes: list[list[list[int]]],
    count: int,
    best: float,
    *,
    twice: bool,
    apart: bool,
) -> dict[str, float]:
    # the thresholded bound at the best of several levels, if one can beat ``best``
    channels = len(table.values)
    diagonal = torch.arange(channels)
    centre = table.reach
    off = table.values.clone()
    off[(diagonal, diagonal, *centre)] = 0
    if apart:
        off[diagonal, diagonal] = 0
    if count < 2:
        return {}

    def split(level: float) -> tuple[Table, float]:
        kept = off.sign() * (off.abs() - level).clamp_min(0)
        rest = _radius((off - kept).abs(), classes, count, twice=twice).max().item()
        kept[(diagonal, diagonal, *centre)] = table.squares
        return replace(table, values=kept), outward(rest, count)

    mean = off.abs().mean().item()
    tried: dict[float, float] = {}

    def estimate(level: float) -> float:
        if level not in tried:
            kept, rest = split(level)
            tried[level] = rest + estimated_eigenvalue(kept, blocks.spatial) - 1 if rest < best else math.inf
        return tried[level]

    levels = [share * (best + 1) / (count - 1) for share in (0.15, 0.25, 0.35, 0.45, 0.55, 0.7)]
    levels = [level for level in levels if level > mean / 4]
    if not levels:
        return {}
    level = min(levels, key=estimate)
    for factor in (0.93, 1.07, 0.965, 1.035) if channels <= FINE_GRID else ():
        level = min(level, level * factor, key=estimate)
    if tried[level] >= best:
        return {}
    kept, rest = split(level)
    return {"thresholded": outward(largest_eigenvalue(kept, blocks.spatial, nonnegative=False) - 1 + rest, 4)}


def _cropped_sides(
    operator: ConvOperator, classes: list[list[list[int]]], reach: tuple[int, ...], count: int, *, twice: bool
) -> tuple[float, float]:
    """Gershgorin's bounds where taps in the padding are cut off.

    A row's inner products with others only see its own taps inside, so masking one of the two is enough.
    """
    error = table_error(operator)
    above = below = 0.0
    for mask in _tap_masks(operator):
        values = _cross_correlations(operator, mask, reach)
        radius = _radius(values.abs() + error[(..., *[None] * operator.dims)], classes, count, twice=twice)
        squares = values.diagonal(dim1=0, dim2=1)[*reach]
        above = max(above, (squares + error.diagonal() - 1 + radius).max().item())
        below = max(below, (1 - squares + error.diagonal() + radius).max().item())
    return outward(above, count), outward(below, count)


def _tap_masks(operator: ConvOperator) -> Iterator[Tensor]:
    """The sets of taps inside the input, over all places of the output; bool, of the kernel's shape."""
    axes = []
    for n, places, kernel, s, p, d in zip(
        operator.input_shape[1:],
        operator.output_shape[1:],
        operator.weight.shape[2:],
        operator.stride,
        operator.padding,
        operator.dilation,
        strict=True,
    ):
        axes.append(sorted({tuple(0 <= q * s - p + d * a < n for a in range(kernel)) for q in range(places)}))
    for masks in product(*axes):
        mask = torch.ones((), dtype=torch.bool)
        for axis in masks:
            mask = mask[..., None] & torch.tensor(axis)
        yield mask


def _cross_correlations(operator: ConvOperator, mask: Tensor, reach: tuple[int, ...]) -> Tensor:
    # inner products of the masked filters with all rows around them. Shape ``(K, K, *shifts)``
    spread = [d * (n - 1) + 1 for n, d in zip(operator.weight.shape[2:], operator.dilation, strict=True)]
    around = [n + 2 * r * s for n, r, s in zip(spread, reach, operator.stride, strict=True)]
    pad = [v for r, s in zip(reversed(reach), reversed(operator.stride), strict=True) for v in (r * s, r * s)]
    patches = torch.zeros(*operator.weight.shape[:2], *spread, dtype=torch.float64)
    patches[(..., *(slice(None, None, d) for d in operator.dilation))] = operator.weight * mask
    shape = (operator.weight.shape[1], *around)
    window = ConvOperator(operator.weight, shape, stride=operator.stride, dilation=operator.dilation)
    return window.forward(F.pad(patches, pad))
