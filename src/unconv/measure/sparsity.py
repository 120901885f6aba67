"""How much of each conv block is non-zero over a set of images, streamed in constant memory (paper, Table 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from unconv.errors import UnconvError, UsageError, check_whole


@dataclass(frozen=True)
class NonZeros:
    """Share of non-zero entries over images, with what its standard error needs.

    Only integers are kept, so sums are exact: the same in any order, batching and number of processes.
    """

    images: int = 0
    entries: int = 0  # number of entries e_i over all images
    nonzeros: int = 0  # number of non-zero entries c_i over all images
    entries_squared: int = 0  # sum of e_i^2
    nonzeros_squared: int = 0  # sum of c_i^2
    cross: int = 0  # sum of e_i c_i

    @staticmethod
    def of(values: Tensor) -> NonZeros:
        """Count one batch, one row per image. Shape ``(N, *shape)``."""
        counts: list[int] = torch.count_nonzero(values.flatten(1), dim=1).tolist()
        n, each, total = len(counts), math.prod(values.shape[1:]), sum(counts)
        return NonZeros(n, each * n, total, each**2 * n, sum(c * c for c in counts), each * total)

    def __add__(self, other: NonZeros) -> NonZeros:
        return NonZeros(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def fraction(self) -> float:
        """Share of non-zeros, 0 to 1; NaN before the first image."""
        return self.nonzeros / self.entries if self.entries else math.nan

    @property
    def percent(self) -> float:
        """Share of non-zeros in percent, as in Table 2."""
        return 100 * self.fraction

    @property
    def standard_error(self) -> float:
        """Standard error of ``fraction`` over images (of a ratio estimator where images differ in size).

        ``sqrt(n / (n - 1) * sum_i (c_i - f e_i)^2) / sum_i e_i`` with the fraction ``f``; NaN below two images.
        """
        if self.images < 2 or not self.entries:
            return math.nan
        # times entries^2, and so in integers: the three terms nearly cancel
        c, e = self.nonzeros, self.entries
        spread = self.nonzeros_squared * e * e - 2 * c * e * self.cross + c * c * self.entries_squared
        return math.sqrt(spread * self.images / (self.images - 1)) / e**2


@dataclass(frozen=True)
class BlockSparsity:
    """Shares of non-zeros of one conv block."""

    activation: NonZeros = NonZeros()  # after the activation function
    pooled: NonZeros = NonZeros()  # after the pooling; the same as activation where the block has none

    def __add__(self, other: BlockSparsity) -> BlockSparsity:
        return BlockSparsity(self.activation + other.activation, self.pooled + other.pooled)


@dataclass
class SparsityStatistics:
    """Streaming statistics of every conv block: memory does not grow with images, and sums are exact in any order."""

    blocks: dict[str, BlockSparsity] = field(default_factory=dict)  # by name, in order of first update

    def __getitem__(self, block: str) -> BlockSparsity:
        return self.blocks[block]

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def update(self, block: str, activated: Tensor, pooled: Tensor | None = None) -> None:
        """Count a batch ``(N, K, *spatial)``, and the same pooled; UnconvError where it is not finite."""
        if pooled is not None and len(pooled) != len(activated):
            raise UsageError(f"{len(activated)} activations and {len(pooled)} pooled ones; expected the same images")
        if not torch.isfinite(activated).all():
            raise UnconvError(
                f"activations of conv block {block!r} contain NaN or infinite values; check weights and preprocessing"
            )
        after = NonZeros.of(activated)
        self.merge(SparsityStatistics({block: BlockSparsity(after, after if pooled is None else NonZeros.of(pooled))}))

    def merge(self, other: SparsityStatistics) -> None:
        """Add what another process has counted."""
        for block, counted in other.blocks.items():
            self.blocks[block] = self.blocks.get(block, BlockSparsity()) + counted


def k_from(fraction: float, regions: int) -> int:
    """Return ``k = max(1, round(fraction * regions))``: the share of a code's regions that a conv block has in use."""
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction of non-zeros is {fraction}; expected one between 0 and 1 (not percent)")
    check_whole(regions=regions)
    return max(1, round(fraction * regions))
