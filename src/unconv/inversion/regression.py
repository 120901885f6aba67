"""The regressions behind linear decoders: what is read around a position, and sums over reference images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unconv.inversion.blocks import BlockGrid, as_map, infer_stride, largest_divisors, neighbourhoods
from unconv.inversion.ridge import NormalEquations, RidgeSolver, choose_on_held_out, dual_ridge


@dataclass(frozen=True)
class LinearConfig:
    """How linear decoders are fitted."""

    # most numbers that a pixel block is predicted from; memory and time of a layer go with its square and cube
    max_unknowns: int = 2800
    # positions per axis of the near and of the far neighbourhood. Near a position all channels are read, or as many
    # components as max_unknowns leaves room for; farther away only a few components. The first pair is taken that
    # leaves room for least_share of the channels and for which there are enough positions.
    neighbourhoods: tuple[tuple[int, int], ...] = ((3, 7), (3, 5), (3, 3), (1, 7), (1, 5), (1, 3), (1, 1))
    far_components: int = 12  # components that are read of the far neighbourhood
    least_share: float = 0.4  # see neighbourhoods
    fewest_samples: float = 2.0  # positions per unknown that there have to be at least
    # most multiply-adds for the normal equations of one layer; where all positions would take more, some are chosen at
    # random
    max_operations: float = 3e11
    held_out_every: int = 4  # every so many-th reference image takes no part until the regularisation is chosen
    # regularisation that the search begins with, in units of the mean diagonal of the normal equations
    ridge: float = 1e-4
    ridge_step: float = 10**0.5  # ratio of neighbouring regularisations
    ridge_range: tuple[float, float] = (1e-7, 1e3)  # least and largest regularisation
    # most values per axis that a position predicts; with larger strides a coarser image is predicted and interpolated
    max_block: int = 16
    vector_grid: int = 16  # values per axis of the coarse image that vectors predict
    kept_residuals: int = 10  # held-out images whose residuals are kept
    seed: int = 0  # seed of the choice of positions


@dataclass(frozen=True)
class Weights:
    """An affine map from features to blocks of pixels."""

    # "map": a convolution from positions to blocks; "vector": from all features to a coarse image; "mean":
    # the features say nothing, and the mean image is returned
    kind: str
    # convolution of the features, (C * prod(block), K + 1, *size), the last channel being 1 outside of the map; of
    # a vector, (C * prod(block), K)
    near: Tensor
    bias: Tensor  # shape (C * prod(block),)
    projection: Tensor | None  # before near; shape (K, features)
    # convolution of a few components, 0 where near reads; shape (C * prod(block), k, *size)
    far: Tensor | None
    far_projection: Tensor | None  # before far; shape (k, features)
    stride: tuple[int, ...]  # pixels per position and axis; empty for vectors
    block: tuple[int, ...]  # values per position and axis; for vectors, sizes of the coarse image
    ridge: float  # regularisation, in units of the mean diagonal
    status: str = "fitted"  # "fitted", or why there is nothing to fit
    note: str = ""  # what had to be made smaller than planned; empty otherwise


def mean_image(mean: Tensor, block: tuple[int, ...], status: str) -> Weights:
    """Weights of features that say nothing. ``mean``: the coarse image, flat."""
    return Weights("mean", mean[:, None] * 0, mean, None, None, None, (), block, 0.0, status)


@dataclass(frozen=True)
class Reading:
    """What is read around a position."""

    near: int  # positions per axis at which the channels or components are read
    kept: int
    far: int  # positions per axis at which a few components are read; those of near are left out
    components: int
    dims: int

    def __str__(self) -> str:
        return f"{self.kept} components within {self.near} and {self.components} within {self.far} positions per axis"

    @property
    def ring(self) -> Tensor:
        """Which positions of the far neighbourhood count, flat."""
        mask = torch.ones((self.far,) * self.dims, dtype=torch.bool)
        start = (self.far - self.near) // 2
        mask[(slice(start, start + self.near),) * self.dims] = False
        return mask.flatten()

    @property
    def unknowns(self) -> int:
        """Numbers that a block is predicted from; one channel more says where the map ends."""
        return (self.kept + 1) * self.near**self.dims + self.components * (self.far**self.dims - self.near**self.dims)

    @staticmethod
    def plan(width: int, dims: int, most: float, config: LinearConfig) -> Reading:
        """Return the first neighbourhoods of a configuration that there is room for; one position always is."""
        few = min(config.far_components, width)
        for near, far in config.neighbourhoods:
            room = most - few * (far**dims - near**dims)
            kept = min(width, int(room // near**dims) - 1)
            if kept >= max(1, config.least_share * width):
                return Reading(near, kept, far, few if far > near else 0, dims)
        return Reading(1, max(1, min(width, int(most) - 1)), 1, 0, dims)


class MapRegression:
    """Normal equations of a layer with positions, of fitted and of held-out images."""

    def __init__(self, features: Tensor, x: Tensor, count: int, config: LinearConfig) -> None:
        """Plan what is read from the features of the first of ``count`` images."""
        self.config, self.channels = config, x.shape[1]
        positions = self._positions(features, x.shape[2:])
        spatial, sizes = tuple(x.shape[2:]), tuple(positions.shape[2:])
        stride = infer_stride(spatial, sizes)
        block = largest_divisors(stride, config.max_block)
        self.grid = BlockGrid(spatial, sizes, stride, block)
        width, dims = positions.shape[1], len(sizes)
        samples = count * math.prod(self.grid.grid)
        planned = Reading.plan(width, dims, config.max_unknowns, config)
        self.reading = Reading.plan(width, dims, min(config.max_unknowns, samples / config.fewest_samples), config)
        self.note = ""
        if self.reading != planned:
            self.note = f"only {samples} positions in all reference images: {self.reading} is read, not {planned}"
        self.projection = self.far_projection = None
        kept, few = self.reading.kept, self.reading.components
        if kept < width or few:
            needed = max(few, kept if kept < width else 0)
            ordered = _components(positions, self.grid.to_blocks(x.float().cpu()), needed)
            self.projection = ordered[:kept] if kept < width else None
            self.far_projection = ordered[:few] if few else None
        targets = self.channels * math.prod(block)
        self.fitted = NormalEquations(self.reading.unknowns, targets)
        self.held_out = NormalEquations(self.reading.unknowns, targets)
        self.per_image = math.ceil(config.max_operations / self.reading.unknowns**2 / count)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.finite = True
        self.low, self.high = positions.new_full((width,), torch.inf), positions.new_full((width,), -torch.inf)

    @property
    def constant(self) -> bool:
        """Whether no channel has had two different values, but for rounding."""
        return not bool(((self.high - self.low) > 1e-6 * torch.maximum(self.high.abs(), self.low.abs())).any())

    def _positions(self, features: Tensor, spatial: Sequence[int]) -> Tensor:
        positions = as_map(features, spatial)
        assert positions is not None
        return positions.detach().float().cpu()

    def add(self, x: Tensor, features: Tensor, held_out: Tensor) -> None:
        """Add images ``(N, C, *spatial)`` and their features; ``held_out``: which are, shape ``(N,)``, bool."""
        positions, x = self._positions(features, self.grid.image), x.float().cpu()
        self.finite = self.finite and bool(positions.isfinite().all())
        if not self.finite:
            return
        channels = positions.transpose(0, 1).flatten(1)
        self.low = torch.minimum(self.low, channels.amin(1))
        self.high = torch.maximum(self.high, channels.amax(1))
        for n in range(len(x)):
            places = math.prod(self.grid.grid)
            chosen = None
            if self.per_image < places:
                chosen = torch.randperm(places, generator=self.generator)[: self.per_image]
            targets = self.grid.to_blocks(x[n : n + 1]).flatten(2)[0].T
            sums = self.held_out if held_out[n] else self.fitted
            sums.add(self._read(positions[n : n + 1], chosen), targets if chosen is None else targets[chosen])

    def _read(self, positions: Tensor, chosen: Tensor | None) -> Tensor:
        read = self.reading
        near = self.grid.surround(project(self.projection, positions), read.near // 2)
        parts = [neighbourhoods(near, read.near, chosen)]
        if self.far_projection is not None:
            padded = self.grid.surround(project(self.far_projection, positions), read.far // 2)[:, :-1]
            far = neighbourhoods(padded, read.far, chosen)
            parts.append(far.unflatten(1, (read.components, -1))[:, :, read.ring].flatten(1))
        return torch.cat(parts, 1)

    def solve(self) -> tuple[Weights, Weights]:
        """Weights of all images, and those that the held-out images had no part in."""
        total = self.fitted + self.held_out
        if self.constant or not self.finite:
            blocks = total.cross[-1] / max(total.count, 1)
            mean = blocks.reshape(self.channels, -1).mean(1).float()
            status = "features are constant" if self.finite else "features are not finite"
            weights = mean_image(mean, (1,) * len(self.grid.image), status)
            return weights, weights
        start, step, within = self.config.ridge, self.config.ridge_step, self.config.ridge_range
        ridge, weight = choose_on_held_out(self.fitted, self.held_out, start=start, step=step, within=within)
        return self._weights(RidgeSolver(total).weight(ridge), ridge), self._weights(weight, ridge)

    def _weights(self, solution: Tensor, ridge: float) -> Weights:
        read, targets = self.reading, solution.shape[1]
        split = (read.kept + 1) * read.near**read.dims
        near = solution[:split].T.reshape(targets, -1, *(read.near,) * read.dims)
        far = None
        if read.components:
            far = solution.new_zeros(targets, read.components, read.far**read.dims)
            far[:, :, read.ring] = solution[split:-1].T.reshape(targets, read.components, -1)
            far = far.reshape(targets, read.components, *(read.far,) * read.dims).float()
        return Weights(
            "map",
            near.float().contiguous(),
            solution[-1].float(),
            self.projection,
            far,
            self.far_projection,
            self.grid.stride,
            self.grid.block,
            ridge,
            note=self.note,
        )


class VectorRegression:
    """Features and coarse images of a layer without positions."""

    def __init__(self, x: Tensor, config: LinearConfig) -> None:
        """Plan the coarse image of images ``(N, C, *spatial)``."""
        self.config = config
        self.coarse = tuple(min(n, config.vector_grid) for n in x.shape[2:])
        self.samples: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def add(self, x: Tensor, features: Tensor, held_out: Tensor) -> None:
        """Add images ``(N, C, *spatial)`` and their features; ``held_out``: which are, shape ``(N,)``, bool."""
        self.samples.append(features.detach().flatten(1).float().cpu())
        self.targets.append(F.interpolate(x.float().cpu(), self.coarse, mode="area").flatten(1))
        self.held_out.append(held_out)

    def solve(self) -> tuple[Weights, Weights]:
        """Weights of all images, and those that the held-out images had no part in."""
        samples, targets = torch.cat(self.samples).double(), torch.cat(self.targets).double()
        fitted = ~torch.cat(self.held_out)
        return self._fit(samples, targets), self._fit(samples[fitted], targets[fitted])

    def _fit(self, samples: Tensor, targets: Tensor) -> Weights:
        mean = targets.mean(0).float()
        if not samples.isfinite().all():
            return mean_image(mean, self.coarse, "features are not finite")
        if len(samples) < 3:
            return mean_image(mean, self.coarse, "fewer than three reference images")
        found = dual_ridge(samples, targets, within=self.config.ridge_range, step=self.config.ridge_step)
        if not found.coefficients.any():
            return mean_image(mean, self.coarse, "features are constant")
        centred = samples - found.mean
        weight = found.coefficients.T @ centred
        bias = (found.mean_target - weight @ found.mean).float()
        # through the reference features where that is smaller
        through = len(samples) < samples.shape[1]
        near = (found.coefficients.T if through else weight).float().contiguous()
        projection = centred.float() if through else None
        return Weights("vector", near, bias, projection, None, None, (), self.coarse, found.ridge)


def project(projection: Tensor | None, positions: Tensor) -> Tensor:
    """Components of a map, or all channels. Shapes ``(K, C)`` and ``(N, C, *positions)`` to ``(N, K, *positions)``."""
    return positions if projection is None else torch.einsum("kc,nc...->nk...", projection.to(positions), positions)


def _components(positions: Tensor, blocks: Tensor, count: int) -> Tensor:
    """Return combinations of channels, ``(count, C)``, first those that predict most of the blocks at their position.

    Reduced-rank regression: the principal components of the predictions. Where there are too few of them, principal
    components of the features follow.
    """
    # extra positions of the grid have no features
    if positions.shape[2:] != blocks.shape[2:]:
        blocks = F.interpolate(blocks, positions.shape[2:])
    a = torch.nan_to_num(positions, posinf=0.0, neginf=0.0).movedim(1, -1).flatten(0, -2)
    sums = NormalEquations(a.shape[1], blocks.shape[1])
    sums.add(a, blocks.movedim(1, -1).flatten(0, -2))
    solver = RidgeSolver(sums)
    weight = solver.weight(1e-3)[:-1]
    # the covariance of the predictions is W^T S W
    _, directions = torch.linalg.eigh(weight.T @ solver.gram @ weight)
    both = (weight @ directions.flip(1)).T[: min(count, a.shape[1])]
    if len(both) < count:
        _, principal = torch.linalg.eigh(solver.gram)
        both = torch.cat([both, principal.flip(1).T])[:count]
    return F.normalize(both, dim=1).float().contiguous()
