"""Model-RIP, sampled: how nearly ``W^T`` keeps the norm of random sparse codes (paper, Figures 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.linalg import norms
from unconv.measure.coherence import correlation_table
from unconv.operators import ConvOperator
from unconv.sparsity import Pooled, Window

Values = Literal["uniform", "gaussian", "sign"]
Boundary = Literal["full", "cropped"]
Method = Literal["auto", "dense", "patches", "gram"]

BATCH_BYTES = 2**27  # of the largest buffers of one batch
TABLE_BYTES = 2**28  # of the correlation table of the "gram" method
GRAM_ENTRIES = 2**16  # active entries of one batch of the "gram" method: its buffers stay near the cache
FLOYD_K = 64  # above it, one set at a time is faster

# seconds per operation on one CPU core, in (float32, float64), for the choice of a method: only their ratios count
DENSE_MAC = (2e-11, 6e-11)  # product of the transposed convolution
PATCH_MAC = (5e-11, 2e-10)  # product with an active entry
PATCH_ENTRY = 8e-8  # active entry, to sort it
PATCH_OUTPUT = (8e-10, 5e-9)  # number added to the output
GRAM_PAIR = 1e-8  # pair of active entries, per axis; always float64, as are the next
TABLE_ENTRY = 1e-8
TABLE_MAC = 6e-11


@dataclass(frozen=True)
class SparseCodes:
    """A batch of model-k-sparse codes, by their active entries.

    Attributes:
        channels: Channel of each entry. Shape ``(N, k)``, int64.
        places: Flat index of its place in the channel's map. Shape ``(N, k)``, int64; no entry is named twice
            in one code with non-zero values.
        values: Its value. Shape ``(N, k)``.
        shape: Shape of the dense activation, ``(K, *spatial)``.
    """

    channels: Tensor
    places: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The codes spelled out.

        Returns:
            Shape ``(N, K, *spatial)``.
        """
        flat = self.values.new_zeros(len(self.values), math.prod(self.shape))
        return flat.scatter_add_(1, self.index, self.values).unflatten(1, self.shape)

    @property
    def index(self) -> Tensor:
        """Flat index of each entry in the whole code. Shape ``(N, k)``."""
        return self.channels * math.prod(self.shape[1:]) + self.places

    @property
    def norms(self) -> Tensor:
        """Euclidean norm of each code. Shape ``(N,)``."""
        return self.values.norm(dim=1)


@dataclass(frozen=True)
class RatioSummary:
    """Distribution of sampled ratios ``r = ||W^T z|| / ||z||``.

    Attributes:
        samples: Number of ratios.
        p01: 1 % quantile.
        p50: Median.
        p99: 99 % quantile.
        min: Smallest.
        max: Largest.
        mean: Mean.
        std: Standard deviation, with ``samples - 1``; 0 for one sample.
        delta: Largest ``|r^2 - 1|``: the model-RIP constant that the samples imply, a lower bound of the true one.
    """

    samples: int
    p01: float
    p50: float
    p99: float
    min: float
    max: float
    mean: float
    std: float
    delta: float

    @staticmethod
    def of(ratios: Tensor) -> RatioSummary:
        """Summarise ratios.

        Args:
            ratios: Shape ``(samples,)``.

        Returns:
            The summary.

        Raises:
            ValueError: If there is none, or one is not finite.
        """
        r = ratios.detach().cpu().double().numpy().ravel()
        if not r.size or not np.isfinite(r).all():
            raise ValueError(f"{r.size} ratios, {int((~np.isfinite(r)).sum())} not finite; expected finite ones")
        p01, p50, p99 = (float(q) for q in np.quantile(r, [0.01, 0.5, 0.99]))
        return RatioSummary(
            samples=r.size,
            p01=p01,
            p50=p50,
            p99=p99,
            min=float(r.min()),
            max=float(r.max()),
            mean=float(r.mean()),
            std=float(r.std(ddof=1)) if r.size > 1 else 0.0,
            delta=float(np.abs(r**2 - 1).max()),
        )


@dataclass(frozen=True)
class Comparison:
    """Ratios of three filter banks on the same codes.

    Attributes:
        learned: The filters as they are.
        normalised: Each scaled to unit norm.
        gaussian: Gaussian filters of the same size and expected unit norm.
    """

    learned: RatioSummary
    normalised: RatioSummary
    gaussian: RatioSummary


@dataclass(frozen=True)
class SupportRatios:
    """What ``W W^T`` makes of sparse codes.

    Attributes:
        on_support: ``||(W W^T z)_S|| / ||z||`` on the support ``S`` of ``z`` (Lemma B.1). Shape ``(samples,)``.
        everywhere: ``||W W^T z|| / ||z||`` over all entries. Shape ``(samples,)``.
    """

    on_support: Tensor
    everywhere: Tensor


def sample_ratios(
    operator: ConvOperator,
    model: Pooled,
    k: int,
    samples: int,
    *,
    values: Values = "uniform",
    seed: int = 0,
    boundary: Boundary = "full",
    batch: int | None = None,
    method: Method = "auto",
) -> Tensor:
    """Ratios ``||W^T z|| / ||z||`` of random model-k-sparse codes ``z``.

    Three methods give the same ratios up to rounding. ``"dense"`` is the transposed convolution; ``"patches"``
    adds the patches of the active filters only; ``"gram"`` needs the full boundary and sums
    ``z^T (W W^T) z`` over pairs of active entries, from the correlation table, in float64.

    Args:
        operator: The convolution ``W``.
        model: Its regions; a ``k`` of its own must agree with ``k``.
        k: Number of active regions of each code.
        samples: Number of codes.
        values: Active entries: uniform on [-1, 1], standard Gaussian, or random signs.
        seed: Seed of the codes, which depend on nothing else but the shape, the regions, ``k`` and ``values``.
        boundary: ``"full"`` keeps the whole of ``W^T z``, as in the paper; ``"cropped"`` cuts it to the unpadded
            input, so filters at the border lose part of their norm.
        batch: Codes at a time; chosen to bound memory where ``None``. It does not change the codes.
        method: One of the three, or ``"auto"`` for the cheapest by count of operations.

    Returns:
        Shape ``(samples,)``, in the type of the filters (float32 for half precision).

    Raises:
        ValueError: If an argument is out of range, or ``"gram"`` is asked for a cropped boundary.
    """
    if method not in get_args(Method):
        raise ValueError(f"method {method!r} is not known; use one of {', '.join(get_args(Method))}")
    operator = _bounded(operator, boundary)
    if method == "gram" and any(operator.padding):
        raise ValueError("method 'gram' needs whole filters; use boundary 'full', or method 'dense' or 'patches'")
    if method == "auto":
        method = cheapest_method(operator, k, samples)
    batch = _batch_size(operator, k, method) if batch is None else batch
    adjoint_norms = _adjoint_norms(operator, method)
    codes = draw_codes(operator, model, k, samples, values=values, seed=seed, batch=batch)
    return torch.cat([adjoint_norms(z) / z.norms for z in codes])


def support_ratios(
    operator: ConvOperator,
    model: Pooled,
    k: int,
    samples: int,
    *,
    values: Values = "uniform",
    seed: int = 0,
    boundary: Boundary = "full",
    batch: int | None = None,
) -> SupportRatios:
    """Ratios ``||W W^T z|| / ||z||`` of random codes, on the support of ``z`` and everywhere.

    Args:
        operator: The convolution ``W``.
        model: Its regions.
        k: Number of active regions of each code.
        samples: Number of codes, the same as ``sample_ratios`` draws.
        values: Distribution of the active entries.
        seed: Seed of the codes.
        boundary: As for ``sample_ratios``.
        batch: Codes at a time; chosen to bound memory where ``None``.

    Returns:
        Both ratios of each code.
    """
    operator = _bounded(operator, boundary)
    batch = _batch_size(operator, k, "dense") if batch is None else batch
    on_support, everywhere = [], []
    for z in draw_codes(operator, model, k, samples, values=values, seed=seed, batch=batch):
        back = operator.forward(operator.adjoint(z.dense())).flatten(1)
        # an entry that two regions share is counted once: its second naming has the value 0
        on_support.append(torch.where(z.values != 0, back.gather(1, z.index), 0.0).norm(dim=1) / z.norms)
        everywhere.append(norms(back) / z.norms)
    return SupportRatios(torch.cat(on_support), torch.cat(everywhere))


def compare(
    operator: ConvOperator,
    model: Pooled,
    k: int,
    samples: int,
    *,
    values: Values = "uniform",
    seed: int = 0,
    boundary: Boundary = "full",
    batch: int | None = None,
) -> Comparison:
    """Sampled ratios of the filters as they are, normalised, and Gaussian, on the same codes.

    Args:
        operator: The convolution ``W``.
        model: Its regions.
        k: Number of active regions of each code.
        samples: Number of codes.
        values: Distribution of the active entries.
        seed: Seed of the codes and of the Gaussian filters.
        boundary: As for ``sample_ratios``.
        batch: Codes at a time; chosen to bound memory where ``None``.

    Returns:
        The three summaries.
    """
    operator = _bounded(operator, boundary)
    method = cheapest_method(operator, k, samples)
    batch = _batch_size(operator, k, method) if batch is None else batch
    banks = [_adjoint_norms(bank, method) for bank in (operator, operator.normalised(), operator.gaussian(seed))]
    codes = draw_codes(operator, model, k, samples, values=values, seed=seed, batch=batch)
    ratios = torch.cat([torch.stack([bank(z) / z.norms for bank in banks]) for z in codes], dim=1)
    return Comparison(*(RatioSummary.of(r) for r in ratios))


def draw_codes(
    operator: ConvOperator,
    model: Pooled,
    k: int,
    samples: int,
    *,
    values: Values = "uniform",
    seed: int = 0,
    batch: int | None = None,
) -> Iterator[SparseCodes]:
    """Random model-k-sparse codes: ``k`` regions without replacement, a place in each, i.i.d. values.

    Everything is drawn on the CPU in float64, so every device, type and batch size gets the same codes. Where
    two overlapping regions draw the same place, the second one's value is 0.

    Args:
        operator: The convolution whose output map has the regions; its device and type are those of the codes.
        model: The regions.
        k: Number of active regions of each code.
        samples: Number of codes.
        values: Distribution of the active entries.
        seed: Seed.
        batch: Codes at a time; all where ``None``.

    Returns:
        Batches of codes, ``samples`` in all, drawn as they are asked for.

    Raises:
        ValueError: If an argument is out of range.
    """
    channels, spatial = operator.output_shape[0], operator.output_shape[1:]
    window = model.window(spatial)
    table, sizes = _places(window, spatial)
    regions = channels * len(table)
    if not 1 <= k <= regions:
        raise ValueError(f"k is {k}; the code {operator.output_shape} has {regions} regions, so use 1 to {regions}")
    if model.k is not None and model.k != k:
        raise ValueError(f"the model keeps {model.k} regions and k is {k}; give one number")
    if samples < 1 or (batch is not None and batch < 1):
        raise ValueError(f"samples {samples} and batch {batch} must be at least 1")
    if values not in get_args(Values):
        raise ValueError(f"values {values!r} are not known; use one of {', '.join(get_args(Values))}")
    # one stream per kind of number: each is then read sample after sample, whatever the batch
    for_regions, for_places, for_values = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))

    def batches() -> Iterator[SparseCodes]:
        for start in range(0, samples, batch or samples):
            n = min(batch or samples, samples - start)
            chosen = _without_replacement(for_regions, regions, k, n)
            channel = chosen // len(table)
            region = chosen - channel * len(table)  # several times faster than divmod
            pick = (for_places.random((n, k)) * sizes.take(region)).astype(np.int64)
            place = table.take(region * table.shape[1] + pick)
            channels, places = torch.from_numpy(channel), torch.from_numpy(place)
            z = torch.from_numpy(_draw_values(for_values, values, (n, k)))
            if window.overlapping:
                z[_named_before(channels * math.prod(spatial) + places)] = 0
            device, dtype = operator.device, operator.dtype
            yield SparseCodes(channels.to(device), places.to(device), z.to(device, dtype), operator.output_shape)

    return batches()


def cheapest_method(operator: ConvOperator, k: int, samples: int) -> Method:
    """The method of ``sample_ratios`` that takes the least time, by its count of operations.

    Args:
        operator: The convolution, without padding where the boundary is full.
        k: Number of active entries of each code.
        samples: Number of codes.

    Returns:
        ``"dense"``, ``"patches"`` or ``"gram"``.
    """
    filters, shared = operator.weight.shape[:2]
    taps, places = math.prod(operator.weight.shape[2:]), math.prod(operator.output_shape[1:])
    wide = operator.dtype == torch.float64
    dense = places * filters * shared * taps * DENSE_MAC[wide]
    patches = k * (shared * taps * PATCH_MAC[wide] + PATCH_ENTRY)
    patches += places * operator.input_shape[0] * taps * PATCH_OUTPUT[wide]
    cost: dict[Method, float] = {"dense": samples * dense, "patches": samples * patches}
    reach = (d * (n - 1) // t for n, t, d in zip(operator.weight.shape[2:], operator.stride, operator.dilation))
    entries = filters**2 * math.prod(2 * r + 3 for r in reach)
    if not any(operator.padding) and entries * 8 <= TABLE_BYTES:
        table = entries * TABLE_ENTRY + filters**2 * shared * taps**2 / (2 * operator.groups) * TABLE_MAC
        cost["gram"] = table + samples * k * (k + 1) / 2 * operator.dims * GRAM_PAIR
    return min(cost, key=cost.__getitem__)


def _adjoint_norms(operator: ConvOperator, method: Method) -> Callable[[SparseCodes], Tensor]:
    """``z -> ||W^T z||`` by one of the methods, with what it needs of the filters prepared once.

    Returns:
        The function, from ``N`` codes to shape ``(N,)``.
    """
    if method == "dense":
        return lambda z: norms(operator.adjoint(z.dense()))
    if method == "patches":
        # shape: (prod(kernel), K, M // groups)
        taps = operator.weight.flatten(2).permute(2, 0, 1).contiguous()
        return lambda z: norms(_adjoint_patches(operator, taps, z))
    weight = operator.weight.double()
    table = correlation_table(weight, operator.groups, stride=operator.stride, dilation=operator.dilation)
    table = F.pad(table, (1, 1) * operator.dims)
    return lambda z: _gram_norms(table, z)


def _adjoint_patches(operator: ConvOperator, taps: Tensor, z: SparseCodes) -> Tensor:
    """``W^T z`` from the patches of the active filters only.

    One tap at a time: the filters' values there, summed over the entries at each place (a bag per code, place
    and channel group), are added to the places of the input that the tap meets.

    Returns:
        Shape ``(N, M, *spatial)``.
    """
    n, groups, spatial = len(z.values), operator.groups, operator.output_shape[1:]
    bags = math.prod(spatial) * groups
    bag, order = (z.places * groups + z.channels // (operator.output_shape[0] // groups)).sort(dim=1)
    first = torch.arange(n, device=bag.device).unsqueeze(1) * bags
    offsets = torch.searchsorted((bag + first).flatten(), torch.arange(n * bags, device=bag.device))
    channels, values = z.channels.gather(1, order).flatten(), z.values.gather(1, order).flatten()
    padded = [m + 2 * p for m, p in zip(operator.input_shape[1:], operator.padding, strict=True)]
    out = taps.new_zeros(n, *padded, operator.input_shape[0])
    for tap, at in zip(taps, product(*(range(size) for size in operator.weight.shape[2:])), strict=True):
        met = tuple(
            slice(i * d, i * d + t * (m - 1) + 1, t)
            for i, d, t, m in zip(at, operator.dilation, operator.stride, spatial, strict=True)
        )
        sums = F.embedding_bag(channels, tap, offsets, mode="sum", per_sample_weights=values)
        out[(slice(None), *met)] += sums.view(n, *spatial, -1)
    inner = (slice(p, p + m) for p, m in zip(operator.padding, operator.input_shape[1:], strict=True))
    return out[(slice(None), *inner)].movedim(-1, 1)


def _gram_norms(table: Tensor, z: SparseCodes) -> Tensor:
    """``||W^T z||`` from the inner products of the rows of ``W``, in float64.

    Args:
        table: Correlation table with a border of zeros, which stands for all pairs of places farther apart.
        z: The codes.

    Returns:
        Shape ``(N,)``.
    """
    flat, (by_row, by_column, *by_axis) = table.flatten(), table.stride()
    # entries first, so that each step below reads whole rows; 32 bits, for index arithmetic is most of the work
    channels, values = z.channels.T.int().contiguous(), z.values.T.double().contiguous()
    places = torch.unravel_index(z.places.T, z.shape[1:]) if len(by_axis) > 1 else (z.places.T,)
    axes = [(c.int().contiguous(), size // 2, step) for c, size, step in zip(places, table.shape[2:], by_axis)]
    rows = channels * by_row
    columns = channels * by_column + sum(centre * step for _, centre, step in axes)
    total = values.new_zeros(values.shape[1])
    for i in range(len(values)):
        index = columns[i:] + rows[i]
        for place, centre, step in axes:
            index.add_((place[i:] - place[i]).clamp_(-centre, centre), alpha=step)
        terms = flat.index_select(0, index.flatten()).view_as(index).mul_(values[i:])
        total += values[i] * (2 * terms.sum(0) - terms[0])
    return total.clamp_min_(0).sqrt_().to(z.values.dtype)


def _bounded(operator: ConvOperator, boundary: Boundary) -> ConvOperator:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary {boundary!r} is not known; use 'full' or 'cropped'")
    if operator.dtype in {torch.float16, torch.bfloat16}:
        operator = operator.to(torch.float32)
    return operator.full() if boundary == "full" else operator


def _batch_size(operator: ConvOperator, k: int, method: Method) -> int:
    if method == "gram":
        return max(64, GRAM_ENTRIES // max(k, 1))
    places = math.prod(operator.output_shape[1:])
    largest = operator.output_shape[0] if method == "dense" else operator.input_shape[0]
    each = places * largest + math.prod(operator.input_shape) + 4 * k
    return max(1, BATCH_BYTES // (each * operator.weight.element_size()))


def _places(window: Window, spatial: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the places of each region inside the map, and their number.

    Returns:
        Table of shape ``(regions, places of a window)``, those inside the map first, and their number, shape
        ``(regions,)``. Regions without any are left out.
    """
    dims = len(spatial)
    index, inside = np.zeros((1,) * (2 * dims), dtype=np.int64), np.ones((1,) * (2 * dims), dtype=bool)
    for axis, (starts, n) in enumerate(zip(window.starts(spatial), spatial, strict=True)):
        places = np.array(starts)[:, None] + window.dilation[axis] * np.arange(window.kernel[axis])
        # shape: (1, .., regions, .., 1, 1, .., kernel, .., 1), so that all axes broadcast to (*regions, *kernel)
        places = np.expand_dims(places, [a for a in range(2 * dims) if a % dims != axis])
        index, inside = index * n + places, inside & (places >= 0) & (places < n)
    count = math.prod(index.shape[:dims])
    index, inside = index.reshape(count, -1), inside.reshape(count, -1)
    order = np.argsort(~inside, axis=1, kind="stable")
    table, sizes = np.take_along_axis(index, order, axis=1), inside.sum(axis=1)
    return table[sizes > 0], sizes[sizes > 0]


def _without_replacement(rng: np.random.Generator, population: int, k: int, n: int) -> np.ndarray:
    """``n`` random sets of ``k`` out of ``range(population)``, one after the other.

    Returns:
        Shape ``(n, k)``, int64.
    """
    if k > FLOYD_K:
        return np.stack([rng.choice(population, k, replace=False, shuffle=False) for _ in range(n)])
    # Floyd's algorithm on all sets at once (Bentley and Floyd 1987): k draws each
    draws, chosen = rng.random((n, k)), np.empty((k, n), dtype=np.int64)
    for i in range(k):
        last = population - k + i
        draw = (draws[:, i] * (last + 1)).astype(np.int64)
        chosen[i] = np.where((chosen[:i] == draw).any(axis=0), last, draw)
    return chosen.T


def _draw_values(rng: np.random.Generator, values: Values, shape: tuple[int, int]) -> np.ndarray:
    if values == "gaussian":
        return rng.standard_normal(shape)
    draws = 2 * rng.random(shape) - 1
    return np.where(draws < 0, -1.0, 1.0) if values == "sign" else draws


def _named_before(index: Tensor) -> Tensor:
    # shape: (N, k) to (N, k); whether an earlier entry of the same row is equal
    ordered, order = index.sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return torch.zeros_like(again).scatter_(1, order, again)
