"""Model-RIP, sampled: how nearly ``W^T`` keeps the norm of random sparse codes (paper, Figures 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.errors import UsageError, check_choice, check_whole
from unconv.linalg import norms
from unconv.measure.coherence import at_least_single, correlation_table
from unconv.operators import Boundary, ConvOperator, check_convolution
from unconv.sparsity import Pooled, Window

Method = Literal["auto", "dense", "gram"]

BATCH_BYTES = 2**27  # of the largest buffers of one batch
TABLE_BYTES = 2**28  # of the correlation table of the "gram" method
GRAM_ENTRIES = 2**16  # active entries of one batch of the "gram" method: its buffers stay near the cache
FLOYD_K = 64  # above it, one set at a time is faster

PAIR_COST = 100  # multiply-adds of a convolution that take as long as one look-up in the correlation table


@dataclass(frozen=True)
class SparseCodes:
    """A batch of model-k-sparse codes, by their active entries."""

    channels: Tensor  # channel of each entry; shape (N, k), int64
    places: Tensor  # flat index of its place in the channel's map; shape (N, k), int64; of non-zero values, all differ
    values: Tensor  # its value; shape (N, k)
    shape: tuple[int, ...]  # shape of the dense activation, (K, *spatial)

    def dense(self) -> Tensor:
        """The codes spelled out. Shape ``(N, K, *spatial)``."""
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
    """Distribution of sampled ratios ``r = ||W^T z|| / ||z||``."""

    samples: int
    p01: float  # 1 % quantile
    p50: float  # median
    p99: float  # 99 % quantile
    min: float
    max: float
    mean: float
    std: float  # standard deviation, with samples - 1; 0 for one sample
    delta: float  # largest |r^2 - 1|: the model-RIP constant that the samples imply, a lower bound of the true one

    @staticmethod
    def of(ratios: Tensor) -> RatioSummary:
        """Summarise ratios, shape ``(samples,)``; UsageError if there is none, or one is not finite."""
        r = ratios.detach().cpu().double().numpy().ravel()
        if not r.size or not np.isfinite(r).all():
            raise UsageError(f"{r.size} ratios, {int((~np.isfinite(r)).sum())} not finite; expected finite ones")
        p01, p50, p99 = (float(q) for q in np.quantile(r, [0.01, 0.5, 0.99]))
        std = float(r.std(ddof=1)) if r.size > 1 else 0.0
        delta = float(np.abs(r**2 - 1).max())
        return RatioSummary(r.size, p01, p50, p99, float(r.min()), float(r.max()), float(r.mean()), std, delta)


def sample_ratios(
    operator: ConvOperator,
    model: Pooled,
    k: int,
    samples: int,
    *,
    seed: int = 0,
    boundary: Boundary = "full",
    method: Method = "auto",
) -> Tensor:
    """Ratios ``||W^T z|| / ||z||`` of random model-k-sparse codes ``z``, shape ``(samples,)``.

    Two methods give the same ratios up to rounding. ``"dense"`` is the transposed convolution; ``"gram"`` needs the
    full boundary and sums ``z^T (W W^T) z`` over pairs of active entries, from the correlation table, in float64:
    fast for few active entries. ``"auto"`` takes the one that needs fewer operations. A ``k`` of the model's own must
    agree with ``k``. The codes depend on nothing but the ``seed``, the shape, the regions and ``k``. The boundary
    ``"full"`` keeps the whole of ``W^T z``, as in the paper; ``"cropped"`` cuts it to the unpadded input, so filters at
    the border lose part of their norm. Half precision counts as float32.
    """
    check_convolution(operator)
    if not isinstance(model, Pooled):
        raise UsageError(f"model is a {type(model).__name__}; give the regions, such as Pooled(2)")
    check_choice(get_args(Method), method=method)
    operator = at_least_single(operator).at(boundary)
    if method == "gram" and any(operator.padding):
        raise UsageError("method 'gram' needs whole filters; use boundary 'full', or method 'dense'")
    if method == "auto":
        method = _choose_method(operator, k)
    table = F.pad(correlation_table(operator.to(torch.float64)), (1, 1) * operator.dims) if method == "gram" else None
    ratios = []
    for z in draw_codes(operator, model, k, samples, seed=seed, batch=_batch_size(operator, k, method)):
        adjoint_norms = norms(operator.adjoint(z.dense())) if table is None else _gram_norms(table, z)
        ratios.append(adjoint_norms / z.norms)
    return torch.cat(ratios)


def draw_codes(
    operator: ConvOperator, model: Pooled, k: int, samples: int, *, seed: int = 0, batch: int | None = None
) -> Iterator[SparseCodes]:
    """Random model-k-sparse codes: ``k`` regions without replacement, a place in each, values uniform on [-1, 1].

    Everything is drawn on the CPU in float64, so every device, type and batch size gets the same codes. Where
    two overlapping regions draw the same place, the second one's value is 0. Batches of ``batch`` codes, ``samples`` in
    all, are drawn as they are asked for; their device and type are the operator's.
    """
    channels, spatial = operator.output_shape[0], operator.output_shape[1:]
    window = model.window(spatial)
    table, sizes = _places(window, spatial)
    regions = channels * len(table)
    if not 1 <= k <= regions:
        raise UsageError(f"k is {k}; the code {operator.output_shape} has {regions} regions, so use 1 to {regions}")
    if model.k is not None and model.k != k:
        raise UsageError(f"the model keeps {model.k} regions and k is {k}; give one number")
    check_whole(samples=samples, batch=batch)
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
            z = torch.from_numpy(2 * for_values.random((n, k)) - 1)
            if window.overlapping:
                z[named_before(channels * math.prod(spatial) + places)] = 0
            device, dtype = operator.device, operator.dtype
            yield SparseCodes(channels.to(device), places.to(device), z.to(device, dtype), operator.output_shape)

    return batches()


def _choose_method(operator: ConvOperator, k: int) -> Method:
    """Return ``"gram"`` where pairs of active entries are far fewer than the multiply-adds of ``W^T z``."""
    filters, shared = operator.weight.shape[:2]
    # full overlap of two patches per axis, and one border of zeros on each side
    table_bytes = 8 * filters**2 * math.prod(2 * r + 3 for r in operator.reach)
    multiply_adds = math.prod(operator.output_shape) * shared * math.prod(operator.weight.shape[2:])
    pairs = k * (k + 1) / 2 * operator.dims
    small = table_bytes <= TABLE_BYTES and PAIR_COST * pairs <= multiply_adds
    return "gram" if small and not any(operator.padding) else "dense"


def _gram_norms(table: Tensor, z: SparseCodes) -> Tensor:
    """``||W^T z||`` from the inner products of the rows of ``W``, a border of zeros around them, in float64."""
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


def _batch_size(operator: ConvOperator, k: int, method: Method) -> int:
    if method == "gram":
        return max(64, GRAM_ENTRIES // max(k, 1))
    places = math.prod(operator.output_shape[1:])
    each = places * operator.output_shape[0] + math.prod(operator.input_shape) + 4 * k
    return max(1, BATCH_BYTES // (each * operator.weight.element_size()))


def _places(window: Window, spatial: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices of the places of each region inside the map, and their number."""
    index, inside = (part.T.numpy() for part in window.places(spatial))
    order = np.argsort(~inside, axis=1, kind="stable")
    table, sizes = np.take_along_axis(index, order, axis=1), inside.sum(axis=1)
    return table[sizes > 0], sizes[sizes > 0]


def _without_replacement(rng: np.random.Generator, population: int, k: int, n: int) -> np.ndarray:
    """``n`` random sets of ``k`` out of ``range(population)``, one after the other."""
    if k > FLOYD_K:
        return np.stack([rng.choice(population, k, replace=False, shuffle=False) for _ in range(n)])
    # Floyd's algorithm on all sets at once (Bentley and Floyd 1987): k draws each
    draws, chosen = rng.random((n, k)), np.empty((k, n), dtype=np.int64)
    for i in range(k):
        last = population - k + i
        draw = (draws[:, i] * (last + 1)).astype(np.int64)
        chosen[i] = np.where((chosen[:i] == draw).any(axis=0), last, draw)
    return chosen.T


def named_before(index: Tensor) -> Tensor:
    """Whether an earlier entry of the same row is equal. Shape ``(N, k)`` to ``(N, k)``."""
    ordered, order = index.sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return torch.zeros_like(again).scatter_(1, order, again)
