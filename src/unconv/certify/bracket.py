"""Model-RIP constants of a layer, or of any linear map whose outputs are in blocks, between two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unconv.certify.correlations import table_of
from unconv.certify.exact import enumerate_supports
from unconv.certify.gershgorin import RowNeighbours
from unconv.certify.lower_bound import Search, check_effort, deviation_of, lower_bound
from unconv.certify.supports import BlockPartition, check_k, check_rows, separate_regions, validate_operator
from unconv.certify.upper_bound import RowBounds, upper_bound
from unconv.errors import UnconvError, UsageError
from unconv.operators import Boundary, ConvOperator, LinearOperator
from unconv.sparsity import Region, Window

MOST_OUTPUTS = 4096  # of a map that is taken as a matrix: its Gram matrix has 128 MB
MOST_ENUMERATED = 1e7  # supports times the cube of their size, for one unit of effort


@dataclass(frozen=True)
class Bracket:
    """What is known about a model-RIP constant."""

    lower: float  # attained by the witness
    upper: float  # proven
    witness: Tensor  # a z of the model with | ||W^T z||^2 / ||z||^2 - 1 | >= lower. Shape of an output, float64
    how: str  # what gave the two, e.g. "attacked, gershgorin", or "enumerated"

    def __repr__(self) -> str:
        return f"Bracket({self.lower:.6g} <= delta <= {self.upper:.6g}, {self.how})"


def delta_bracket(
    operator: ConvOperator | LinearOperator | Tensor | np.ndarray,
    region: Region | Sequence[int] | Tensor | np.ndarray,
    k: int,
    *,
    twice: bool = False,
    boundary: Boundary = "full",
    effort: float = 1.0,
    seed: int = 0,
) -> Bracket:
    """Lower and upper bound on ``delta_k`` of a linear map ``W`` as it is (normalise its rows first for unit norm).

    The constant is about ``W^T``, so a code has an entry per row. The restricted isometry constant of a measurement
    matrix ``A``, about its columns, is ``delta_bracket(A.T, 1, k)``.

    Args:
        operator: A convolution; or any other linear map, or a matrix of shape ``(outputs, inputs)``, with up to 4096
            outputs. The bounds are those of its matrix in float64.
        region: For a convolution its pooling region, or ``"map"`` for one region per channel, as in the theory. For
            any map a partition of its outputs: the block of each, a tensor of the outputs' shape or flat, -1 for
            outputs in no block; or 1, each output being a block by itself. A code has one non-zero per block.
        k: Number of regions in use.
        twice: Whether to bracket ``delta_2k``, the constant over sums of two vectors.
        boundary: Of a convolution: ``"full"`` (``W^T`` keeps its whole output, as in the paper) or ``"cropped"``.
        effort: Work of the search for the lower bound, in units of some seconds on two cores.
        seed: Seed of the search.

    Returns:
        The bracket; the two agree up to rounding where the subspaces are few enough to enumerate.

    Raises:
        UnconvError: If a filter is zero or not finite, or ``k`` is not between 1 and the number of regions.
        UsageError: If there is no such boundary, or the partition does not fit the outputs.

    Example:
        >>> import torch
        >>> from unconv.certify.bracket import delta_bracket
        >>> delta_bracket(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), [0, 0, 1], k=2)
        Bracket(0.8 <= delta <= 0.8, enumerated)
    """
    if isinstance(operator, ConvOperator) and isinstance(region, int | float | str | tuple | Window):
        convolution = validate_operator(operator, region, k, boundary)
        channels, *spatial = shape = convolution.output_shape
        kept, blocks = slice(None), separate_regions(region, spatial)
        upper = upper_bound(operator, region, k, twice=twice, boundary=boundary)
        lower = lower_bound(operator, region, k, twice=twice, boundary=boundary, effort=effort, seed=seed)
        if blocks is None:
            return Bracket(lower.delta, upper.value, lower.witness, f"attacked, {upper.how}")
    else:
        check_effort(effort)
        rows, shape = _matrix(operator, boundary)
        label = _partition(region, shape)
        kept = (label >= 0).nonzero().flatten()
        check_rows(rows[kept], "row")
        label = label[kept].unique(return_inverse=True)[1]
        check_k(k, int(label.max()) + 1)
        # rows of a matrix are filters of one tap, and their blocks those of one channel
        convolution, channels = ConvOperator(rows[kept, :, None], (rows.shape[1], 1)), 1
        blocks = BlockPartition((tuple(label.tolist()),))
        bounds = RowBounds(convolution, table_of(convolution), blocks, 1, RowNeighbours(label))
        upper = bounds.bound(k, twice=twice, refine=True)
        found = Search(convolution, blocks, k, twice, effort, seed, channels=1).run()
        lower = max((deviation_of(convolution, z) for z in found), key=lambda attained: attained.delta)
    value, how = upper.value, f"attacked, {upper.how}"
    size = blocks.size(channels, k, twice=twice)
    if size <= 64 and blocks.supports(channels, k, twice=twice) * size**3 <= MOST_ENUMERATED * effort:
        exact = enumerate_supports(convolution, blocks, channels, k, twice=twice)
        if exact.ceiling <= value:
            value, how = exact.ceiling, "enumerated"
        lower = max(lower, exact.attained, key=lambda attained: attained.delta)
    witness = torch.zeros(math.prod(shape), dtype=torch.float64)
    witness[kept] = lower.witness.flatten()
    return Bracket(lower.delta, value, witness.reshape(shape), how)


def _matrix(
    operator: ConvOperator | LinearOperator | Tensor | np.ndarray, boundary: Boundary
) -> tuple[Tensor, tuple[int, ...]]:
    """Return a linear map as a matrix in float64, and the shape of its outputs."""
    if isinstance(operator, np.ndarray):
        operator = torch.as_tensor(operator)
    if isinstance(operator, Tensor):
        if operator.ndim != 2 or not operator.numel() or operator.is_complex():
            raise UsageError(
                f"operator has shape {tuple(operator.shape)}, {operator.dtype}; give a real matrix (outputs, inputs)"
            )
        shape = tuple(operator.shape[:1])
    elif all(hasattr(operator, name) for name in ("adjoint", "input_shape", "output_shape")):
        operator = operator.at(boundary) if isinstance(operator, ConvOperator) else operator
        shape = tuple(operator.output_shape)
    else:
        raise UsageError(f"operator is a {type(operator).__name__}; give a matrix or a linear operator")
    count = math.prod(shape)
    if count > MOST_OUTPUTS:
        raise UnconvError(
            f"the map has {count} outputs; as a matrix it has at most {MOST_OUTPUTS}: give a ConvOperator and a region"
        )
    if isinstance(operator, Tensor):
        return operator.detach().cpu().double(), shape
    identity = torch.eye(count, dtype=getattr(operator, "dtype", torch.float64))
    identity = identity.to(getattr(operator, "device", "cpu")).reshape(count, *shape)
    return torch.cat([operator.adjoint(part).flatten(1).cpu().double() for part in identity.split(64)]), shape


def _partition(region: Region | Sequence[int] | Tensor | np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Return the block of each output, flat."""
    count = math.prod(shape)
    if isinstance(region, int) and region == 1:
        return torch.arange(count)
    try:
        label = torch.as_tensor(region)
    except (TypeError, ValueError, RuntimeError):
        label = torch.zeros(())
    if label.is_floating_point() or label.dtype == torch.bool or tuple(label.shape) not in {shape, (count,)}:
        given = f"a partition of shape {tuple(label.shape)}" if label.ndim else repr(region)
        raise UsageError(
            f"region is {given}; for this map give the block of each of its {count} outputs, or 1 for blocks of one"
        )
    if not (label >= 0).any():
        raise UsageError("region puts no output in a block; number blocks from 0")
    return label.flatten().cpu().long()
