"""Lower bounds on the model-RIP constants: vectors of the model sought out to be stretched or shrunk most.

What is returned is always attained: ``|| W^T z ||^2 / || z ||^2`` of a witness ``z``, which anyone can recompute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unconv.certify.correlations import UNIT
from unconv.certify.supports import BlockPartition, inner_partition, validate_operator
from unconv.errors import UsageError
from unconv.linalg import column, norms
from unconv.operators import Boundary, ConvOperator
from unconv.sparsity import Region

BUDGET = 6e10  # multiply-adds of one unit of effort: some seconds on two cores
MEMORY = 2**25  # entries of one batch of activations: 256 MB in float64
STARTS = 64  # for one unit of effort, where the budget allows
GREEDY_MAX_SIZE = 96  # entries up to which supports are grown and mended one entry at a time
KEPT_CANDIDATES = 8  # vectors of each kind that go on to exchanges


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on a model-RIP constant, with its witness."""

    delta: float  # | ratio^2 - 1 | less all that rounding can have added
    witness: Tensor = field(repr=False)  # the vector z of the model, of unit norm; shape (K, *spatial), float64


def deviation_of(operator: ConvOperator, z: Tensor) -> LowerBound:
    """The deviation that a vector attains, rounded inward."""
    z = z.to(operator.weight) / z.norm().to(operator.weight)
    x = operator.adjoint(z)
    square = (x.square().sum() / z.square().sum()).item()
    # an entry of x errs by gamma_n (|W|^T |z|), the squared norms by gamma of the number of their entries
    spread = operator.with_weight(operator.weight.abs()).adjoint(z.abs())
    taps = operator.output_shape[0] // operator.groups * math.prod(operator.weight.shape[2:])
    slip = 2 * (taps + 2) * UNIT * (spread * (x.abs() + spread * taps * UNIT)).sum().item()
    slip += 2 * (x.numel() + z.numel() + 8) * UNIT * (square + 1)
    return LowerBound(max(abs(square - 1) - slip, 0.0), z)


def lower_bound(
    operator: ConvOperator,
    region: Region,
    k: int,
    *,
    twice: bool = False,
    boundary: Boundary = "full",
    effort: float = 1.0,
    seed: int = 0,
) -> LowerBound:
    """Lower bound on ``delta_k`` (``delta_2k`` if ``twice``) by a search for the worst vector.

    From many starts, for the largest and for the smallest ratio: the projected power method
    ``z <- P(+-G z + c z)``, whose every step gains (truncated power method, Yuan and Zhang 2013; ``P`` is the
    projection onto the model); for small supports also greedy growth, where each entry joins that moves the
    extreme eigenvalue of the small Gram matrix most, and exchanges of one entry while any gains. Where regions
    overlap, only places that share none are used, so that the witness is admissible in any reading. Arguments and
    errors are those of ``delta_bracket``.
    """
    check_effort(effort)
    exact = validate_operator(operator, region, k, boundary)
    blocks = inner_partition(region, exact.output_shape[1:])
    patch = _patch(exact, k, effort)
    witnesses = []
    if patch != exact.output_shape[1:]:
        starts = tuple((n - size) // 2 for n, size in zip(exact.output_shape[1:], patch, strict=True))
        inside = _slice(blocks, starts, patch)
        if inside is not None:
            here = (..., *(slice(a, a + size) for a, size in zip(starts, patch, strict=True)))
            # the operator whose output is that part of the map, nothing of it cropped
            sizes = zip(patch, exact.stride, exact.spread, strict=True)
            part = exact.unpadded([(n - 1) * s + spread + 1 for n, s, spread in sizes])
            for z in Search(part, inside, k, twice, effort, seed).run():
                witness = torch.zeros(exact.output_shape, dtype=torch.float64)
                witness[here] = z
                witnesses.append(witness)
    if not witnesses or boundary == "cropped":
        # what the border does to the norm only shows on the whole map
        witnesses += Search(exact, blocks, k, twice, effort, seed).run()
    return max((deviation_of(exact, z) for z in witnesses), key=lambda found: found.delta)


def check_effort(effort: float) -> None:
    """Refuse work that is no number of at least 0 (``UsageError``)."""
    if not 0 <= effort < math.inf:
        raise UsageError(f"effort is {effort}; it multiplies the work of the search, so it is finite and at least 0")


def _patch(operator: ConvOperator, k: int, effort: float) -> tuple[int, ...]:
    # the part of the map to search on: W is the same everywhere, so a few filter lengths hold the worst small
    # supports; large ones get as much as the budget allows some hundred passes over
    affordable = BUDGET * effort / 400 / (2 * operator.output_shape[0] * operator.weight[0].numel())
    side = affordable ** (1 / operator.dims) if k > GREEDY_MAX_SIZE else 0.0
    patch = [min(n, max(4 * r + 4, int(side))) for n, r in zip(operator.output_shape[1:], operator.reach, strict=True)]
    return tuple(patch) if 2 * math.prod(patch) <= math.prod(operator.output_shape[1:]) else operator.output_shape[1:]


def _slice(blocks: BlockPartition, starts: tuple[int, ...], sizes: tuple[int, ...]) -> BlockPartition | None:
    # the blocks of a part of the map, if there are any: what they admit, the whole map's admit
    labels = []
    for axis, start, size in zip(blocks.labels, starts, sizes, strict=True):
        part = axis[start : start + size]
        known = sorted({label for label in part if label >= 0})
        if not known:
            return None
        labels.append(tuple(known.index(label) if label >= 0 else -1 for label in part))
    return BlockPartition(tuple(labels))


class Search:
    """One search: the operator that it may use (faster, in float32, where the problem is large), and its budget."""

    def __init__(
        self,
        operator: ConvOperator,
        blocks: BlockPartition,
        k: int,
        twice: bool,
        effort: float,
        seed: int,
        channels: int | None = None,
    ) -> None:
        # how many channels have such blocks: those of the operator, or one for a matrix whose rows have blocks
        channels = channels or operator.output_shape[0]
        places = math.prod(operator.output_shape) // channels
        cost = 2 * channels * places * operator.weight[0].numel()
        self.operator = operator if cost < 1e7 else operator.to(torch.float32)
        self.blocks, self.k, self.twice, self.most = blocks, k, twice, 2 if twice else 1
        self.size = blocks.size(channels, k, twice=twice)
        self.passes = int(BUDGET * effort / (cost + 200 * channels * places))
        self.most_starts = math.ceil(STARTS * effort)
        self.memory = max(1, MEMORY // max(channels * places, math.prod(operator.input_shape)))
        self.generator = torch.Generator().manual_seed(seed)
        self.flat = (channels, places)
        ones = torch.ones(1, *operator.input_shape, dtype=operator.dtype)
        self.squares = operator.with_weight(operator.weight.square()).forward(ones).to(self.operator.dtype).flatten()
        label = blocks.flat
        numbered = label + blocks.count * torch.arange(channels)[:, None]
        self.block_of = torch.where(label >= 0, numbered, -1).flatten()

    def run(self) -> Iterator[Tensor]:
        """Search at both ends of the spectrum."""
        for sign in (1, -1):
            z = self.power(self.starts(sign), sign)
            yield z[0]
            reached = sign * (self.quadratic(z[:1]).item() - 1)
            if self.size <= GREEDY_MAX_SIZE and self.passes > 8 * self.size:
                supports = torch.cat([z.flatten(1).abs().topk(self.size, dim=1).indices, self.greedy_extend(sign)])
                best, reached = self.swap(self.admissible(supports), sign)
                yield best
            if sign > 0 and reached >= 1:
                # the smallest ratio is at least 0, so it deviates by at most 1
                return

    def gram(self, z: Tensor) -> Tensor:
        """Return ``W W^T z`` of a batch of activations, in pieces that fit in memory."""
        return torch.cat([self.operator.forward(self.operator.adjoint(part)) for part in z.split(self.memory)])

    def quadratic(self, z: Tensor) -> Tensor:
        """Return ``||W^T z||^2`` of a batch of unit vectors."""
        return torch.cat([self.operator.adjoint(part).flatten(1).square().sum(1) for part in z.split(self.memory)])

    def project(self, h: Tensor) -> Tensor:
        """Return the nearest vectors of the model, at unit norm."""
        grouped = h.reshape(len(h), self.flat[0], *self.blocks.spatial)
        z = self.blocks.project(grouped, self.k, twice=self.twice).reshape(h.shape)
        return z / column(norms(z).clamp_min(1e-30), z)

    def starts(self, sign: int) -> Tensor:
        """Return unit vectors of the model: random ones, single entries of each channel, and extreme filters first."""
        channels, places = self.flat
        count = max(1, min(self.most_starts, self.passes // 24, self.memory))
        h = torch.randn(count, channels, places, generator=self.generator, dtype=torch.float64)
        allowed = (self.block_of.reshape(channels, places) >= 0).nonzero()
        singles = min((count + 1) // 2, channels)
        # the middle of a channel meets all of its neighbours
        middle = places // 2 + (self.operator.output_shape[-1] // 2 if self.operator.dims > 1 else 0)
        order = (sign * self.squares.reshape(channels, places)[:, middle % places]).argsort(descending=True)
        place = allowed[(allowed[:, 1] - middle).abs().argmin(), 1]
        h[torch.arange(singles), order[:singles], place] += 1e3
        return self.project(h.reshape(count, *self.operator.output_shape).to(self.operator.dtype))

    def power(self, z: Tensor, sign: int) -> Tensor:
        """Run the projected power method on ``G``, or on ``c I - G`` for the smallest ratio."""
        steps = max(3, min(50, self.passes // 4 // len(z)))
        shift = torch.zeros(())
        if sign < 0:
            shift = torch.tensor(self.operator.norm(tolerance=1e-2, max_steps=12) ** 2 / 2)
        for step in range(steps):
            moved = self.project(sign * self.gram(z) + shift * z)
            # a vector that W^T sends to zero has nowhere to go
            stuck = moved.flatten(1).abs().amax(1) == 0
            moved = torch.where(column(stuck, z), z, moved)
            settled = (moved - z).abs().max().item() < 1e-7
            z = moved
            if settled:
                break
            if step % 8 == 7 and len(z) > KEPT_CANDIDATES:
                z = z[(sign * self.quadratic(z)).topk(max(KEPT_CANDIDATES, len(z) // 2)).indices]
        return z[(sign * self.quadratic(z)).topk(min(KEPT_CANDIDATES, len(z))).indices]

    def greedy_extend(self, sign: int) -> Tensor:
        """Return supports grown entry by entry. Shape ``(starts, size)``."""
        count = max(1, min(self.most_starts, self.passes // (8 * self.size), self.memory))
        allowed = (self.block_of >= 0).nonzero().flatten()
        extreme = allowed[(sign * self.squares[allowed]).argsort(descending=True)[: max(1, count // 4)]]
        chance = allowed[torch.randint(len(allowed), (count - len(extreme),), generator=self.generator)]
        supports = torch.cat([extreme, chance])[:, None]
        small = self.squares[supports][:, :, None]
        while supports.shape[1] < self.size:
            values, vectors = _extreme(small, sign)
            gain = self.bordered(supports, vectors, values, sign)
            supports, small = self.append(supports, small, gain.argmax(1))
        return supports[(sign * _extreme(small, sign)[0]).topk(min(KEPT_CANDIDATES, count)).indices]

    def swap(self, supports: Tensor, sign: int) -> tuple[Tensor, float]:
        """Exchange one entry at a time while the extreme eigenvalue gains."""
        size = supports.shape[1]
        small = self.small(supports)
        rounds = max(1, self.passes // (2 * len(supports) * size))
        active = torch.ones(len(supports), dtype=torch.bool)
        tolerance = 1e-9 if self.operator.dtype == torch.float64 else 1e-5
        for _ in range(min(rounds, 4 * size)):
            rows = active.nonzero().flatten()
            if not len(rows) or size < 2:
                break
            for row in rows.tolist():
                keep = torch.stack([torch.cat([torch.arange(a), torch.arange(a + 1, size)]) for a in range(size)])
                rest, part = supports[row][keep], small[row][keep[:, :, None], keep[:, None, :]]
                values, vectors = _extreme(part, sign)
                gain = self.bordered(rest, vectors, values, sign)
                leave = int(gain.amax(1).argmax())
                now = sign * _extreme(small[row : row + 1], sign)[0].item()
                if gain[leave].max().item() <= now + tolerance * (1 + abs(now)):
                    active[row] = False
                    continue
                there, then = self.append(rest[leave : leave + 1], part[leave : leave + 1], gain[leave].argmax()[None])
                supports[row], small[row] = there[0], then[0]
        values, vectors = _extreme(small, sign)
        best = int((sign * values).argmax())
        z = self.scatter(supports[best : best + 1], vectors[best : best + 1])[0]
        return z, sign * (values[best].item() - 1)

    def bordered(self, supports: Tensor, vectors: Tensor, values: Tensor, sign: int) -> Tensor:
        """What each place, joined to each support, at least makes of ``sign`` times the extreme eigenvalue."""
        cross = self.gram(self.scatter(supports, vectors)).flatten(1)
        middle, half = (values[:, None] + self.squares) / 2, (values[:, None] - self.squares) / 2
        gain = sign * middle + (half.square() + cross.square()).sqrt()
        closed = (self.used(supports)[:, self.block_of.clamp_min(0)] >= self.most) | (self.block_of < 0)
        return gain.masked_fill(closed, -math.inf).scatter(1, supports, -math.inf)

    def append(self, supports: Tensor, small: Tensor, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Return the supports with one more entry each, and their Gram matrices."""
        ones = torch.ones(len(joined), 1, dtype=small.dtype)
        column = self.gram(self.scatter(joined[:, None], ones)).flatten(1)
        supports = torch.cat([supports, joined[:, None]], 1)
        edge = column.gather(1, supports)
        return supports, torch.cat([torch.cat([small, edge[:, :-1, None]], 2), edge[:, None]], 1)

    def small(self, supports: Tensor) -> Tensor:
        """Return the Gram matrix of each support. Shape ``(N, size, size)``."""
        result = []
        for support in supports:
            columns = self.gram(self.scatter(support[:, None], torch.ones(len(support), 1, dtype=self.operator.dtype)))
            part = columns.flatten(1)[:, support]
            result.append((part + part.T) / 2)
        return torch.stack(result)

    def scatter(self, supports: Tensor, values: Tensor) -> Tensor:
        """Return vectors with values at the places of supports, zero elsewhere."""
        z = torch.zeros(len(supports), math.prod(self.flat), dtype=self.operator.dtype)
        return z.scatter_(1, supports, values.to(z)).reshape(-1, *self.operator.output_shape)

    def admissible(self, supports: Tensor) -> Tensor:
        """Return those supports that the model admits: a vector with fewer non-zeros fills up with any places."""
        good = (self.used(supports).amax(1) <= self.most) & (self.block_of[supports] >= 0).all(1)
        return supports[good]

    def used(self, supports: Tensor) -> Tensor:
        """Return how many entries each support has in each block. Shape ``(N, blocks)``, int64."""
        used = torch.zeros(len(supports), self.flat[0] * self.blocks.count, dtype=torch.int64)
        return used.scatter_add_(1, self.block_of[supports].clamp_min(0), torch.ones_like(supports))


def _extreme(small: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    # largest (``sign`` 1) or smallest (-1) eigenvalue of each matrix, with its vector
    values, vectors = torch.linalg.eigh(small)
    at = -1 if sign > 0 else 0
    return values[:, at], vectors[:, :, at]
