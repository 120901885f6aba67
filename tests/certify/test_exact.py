"""Exact constants against brute force, and the blocks that bracket overlapping regions."""

from itertools import combinations

import pytest
import torch
from tests.certify.conftest import brute_force

from cases import draw, gaussian
from unconv.certify.exact import exact_delta
from unconv.certify.supports import inner_partition
from unconv.errors import UnconvError
from unconv.operators import ConvOperator
from unconv.sparsity import Window


@pytest.mark.parametrize(
    ("filters", "size", "region", "k", "twice"),
    [(3, 6, "map", 1, False), (3, 6, "map", 3, False), (2, 6, "map", 2, True), (2, 7, 2, 2, False)],
)
def test_small_cases_as_by_hand(filters, size, region, k, twice):
    """The last one has maps of 5: two regions of 2, and a place in none."""
    operator = gaussian(filters, 2, 3, size=(size,))
    blocks = inner_partition(region, operator.output_shape[1:])
    labels = [label + 10 * channel if label >= 0 else -1 for channel in range(filters) for label in blocks.labels[0]]
    worst, count = brute_force(operator.to_dense(), labels, 2 * k if twice else k, 2 if twice else 1)
    assert exact_delta(operator, region, k, twice=twice).delta == pytest.approx(worst, abs=1e-12)
    assert blocks.supports(filters, k, twice=twice) == count


def test_too_many_subspaces_and_overlaps_are_refused():
    with pytest.raises(UnconvError, match="enumeration stops at a million"):
        exact_delta(ConvOperator(torch.ones(40, 1, 3), (1, 40)), "map", 10)
    with pytest.raises(UnconvError, match="regions overlap"):
        exact_delta(gaussian(3, 2, 3, size=(6,)), Window.of(1, 3, stride=1), 2)


@pytest.mark.parametrize("twice", [False, True])
def test_projection_is_the_nearest_point(twice):
    h = draw(1, 2, 4)
    blocks = inner_partition(2, (4,))
    size, most = (4, 2) if twice else (2, 1)
    kept = [
        sum(h.flatten()[list(s)].square()).item()
        for s in combinations(range(8), size)
        if max([p // 2 for p in s].count(b) for b in range(4)) <= most
    ]
    projected = blocks.project(h, 2, twice=twice)
    assert projected.square().sum().item() == pytest.approx(max(kept))
    assert torch.equal(projected[projected != 0], h[projected != 0])
