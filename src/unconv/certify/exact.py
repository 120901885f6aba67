"""Model-RIP constants by enumerating every subspace: the referee of the bounds, for small cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import torch

from unconv.certify.correlations import UNIT
from unconv.certify.lower_bound import LowerBound, deviation_of
from unconv.certify.supports import BlockPartition, separate_regions, validate_operator
from unconv.errors import UnconvError
from unconv.operators import Boundary, ConvOperator
from unconv.sparsity import Region

MOST_SUBSPACES = 1_000_000
BATCH = 2**21  # Gram entries diagonalised at once: 16 MB


@dataclass(frozen=True)
class Exact:
    """A model-RIP constant by enumeration."""

    delta: float  # the constant, up to the rounding of the eigenvalues
    ceiling: float  # delta and all that this rounding can hide: an upper bound
    attained: LowerBound  # the vector that attains it, and its value from W^T z


def exact_delta(
    operator: ConvOperator, region: Region, k: int, *, twice: bool = False, boundary: Boundary = "full"
) -> Exact:
    """``delta_k`` (``delta_2k`` if ``twice``) from the eigenvalues of ``G_S`` on every maximal support ``S``.

    Smaller supports lie inside maximal ones, and eigenvalues of a principal part lie between those of the whole.
    Regions that overlap, or more than a million subspaces, are refused (UnconvError).
    """
    operator = validate_operator(operator, region, k, boundary)
    channels, *spatial = operator.output_shape
    blocks = separate_regions(region, spatial)
    if blocks is None:
        raise UnconvError("these regions overlap, so their supports are not enumerated; use regions that do not")
    return enumerate_supports(operator, blocks, channels, k, twice=twice)


def enumerate_supports(operator: ConvOperator, blocks: BlockPartition, channels: int, k: int, *, twice: bool) -> Exact:
    """Return the constant over all maximal supports of ``channels`` with such blocks, in the order of the rows."""
    total = blocks.supports(channels, k, twice=twice)
    if total > MOST_SUBSPACES:
        raise UnconvError(f"there are {total:.3g} subspaces; enumeration stops at a million: use delta_bracket")
    dense = operator.to_dense()
    gram = dense @ dense.T
    size = blocks.size(channels, k, twice=twice)
    best, worst_support, side = -1.0, None, 1
    stream = _supports(blocks, channels, size, 2 if twice else 1)
    while batch := list(islice(stream, max(1, BATCH // size**2))):
        index = torch.tensor(batch)
        values = torch.linalg.eigvalsh(gram[index[:, :, None], index[:, None, :]])
        for sign, gap in ((1, values[:, -1] - 1), (-1, 1 - values[:, 0])):
            found = gap.max().item()
            if found > best:
                best, worst_support, side = found, index[gap.argmax()], sign
    assert worst_support is not None
    vectors = torch.linalg.eigh(gram[worst_support[:, None], worst_support]).eigenvectors
    z = torch.zeros(len(gram), dtype=gram.dtype)
    z[worst_support] = vectors[:, -1 if side > 0 else 0]
    found = deviation_of(operator, z.reshape(operator.output_shape))
    # entries err by gamma_m |w| |w'|; computed eigenvalues of a symmetric matrix by a small multiple of n u |A|,
    # for which 32 n u |A| is ample (Anderson et al., LAPACK Users' Guide, section 4.7)
    trace = size * dense.square().sum(1).max().item()
    error = (2 * dense.shape[1] + 32 * size) * UNIT * trace + 4 * UNIT
    return Exact(best, best + error, found)


def _supports(blocks: BlockPartition, channels: int, size: int, most: int) -> Iterator[list[int]]:
    # all supports of ``size`` entries with at most ``most`` per block, as flat indices
    places = blocks.flat.numel()
    lists = [
        [channel * places + int(p) for p in block if p >= 0] for channel in range(channels) for block in blocks.members
    ]
    room = [0] * (len(lists) + 1)
    for at in reversed(range(len(lists))):
        room[at] = room[at + 1] + min(most, len(lists[at]))

    def grow(at: int, support: list[int]) -> Iterator[list[int]]:
        missing = size - len(support)
        if missing == 0:
            yield support
        elif room[at] >= missing:
            for used in range(min(most, missing, len(lists[at])), -1, -1):
                for chosen in combinations(lists[at], used):
                    yield from grow(at + 1, [*support, *chosen])

    return grow(0, [])
