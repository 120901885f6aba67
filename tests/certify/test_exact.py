import math
from itertools import combinations

import numpy as np
import pytest
import torch

from unconv.certify.exact import exact_delta
from unconv.certify.supports import inner_partition, outer_partition
from unconv.errors import UnconvError
from unconv.operators import ConvOperator, gaussian_like
from unconv.sparsity import Window


def operator_1d(filters: int = 3, size: int = 6) -> ConvOperator:
    return ConvOperator(gaussian_like(torch.zeros(filters, 2, 3, dtype=torch.float64), 0), (2, size))


def brute_force(operator: ConvOperator, label, size: int, most: int) -> tuple[float, int]:
    """Every support of `size` rows with at most `most` of one block, by plain itertools and numpy."""
    dense = operator.to_dense().numpy()
    gram = dense @ dense.T
    n = math.prod(operator.output_shape[1:])
    worst, count = -1.0, 0
    for support in combinations(range(len(gram)), size):
        blocks = [(row // n, label(row % n)) for row in support]
        if max(blocks.count(block) for block in blocks) > most:
            continue
        count += 1
        values = np.linalg.eigvalsh(gram[np.ix_(support, support)])
        worst = max(worst, values[-1] - 1, 1 - values[0])
    return worst, count


@pytest.mark.parametrize("k", [1, 2, 3])
def test_whole_maps_as_by_hand(k):
    operator = operator_1d()
    exact = exact_delta(operator, "map", k)
    worst, count = brute_force(operator, lambda place: 0, k, 1)
    assert exact.delta == pytest.approx(worst, abs=1e-12)
    assert exact.subspaces == count == 4**k * math.comb(3, k)


def test_sums_of_two_vectors_as_by_hand():
    operator = operator_1d(filters=2)
    exact = exact_delta(operator, "map", 2, twice=True)
    worst, count = brute_force(operator, lambda place: 0, 4, 2)
    assert exact.delta == pytest.approx(worst, abs=1e-12)
    assert exact.subspaces == count


def test_regions_that_do_not_divide_the_map_as_by_hand():
    operator = operator_1d(filters=2, size=7)  # maps of 5: two regions of 2, one place in none
    exact = exact_delta(operator, 2, 2)
    dense = operator.to_dense()
    gram = dense @ dense.T
    inside = [c * 5 + p for c in range(2) for p in range(4)]
    worst = max(
        max(values[-1].item() - 1, 1 - values[0].item())
        for a, b in combinations(inside, 2)
        if a // 5 != b // 5 or a % 5 // 2 != b % 5 // 2
        for values in [torch.linalg.eigvalsh(gram[[[a], [b]], [[a, b], [a, b]]])]
    )
    assert exact.delta == pytest.approx(worst, abs=1e-12)


def test_too_many_subspaces_and_overlaps_are_refused():
    with pytest.raises(UnconvError, match="enumeration stops at a million"):
        exact_delta(ConvOperator(torch.ones(40, 1, 3), (1, 40)), "map", 10)
    with pytest.raises(UnconvError, match="regions overlap"):
        exact_delta(operator_1d(), Window.of(1, 3, stride=1), 2)


def test_overlapping_regions_are_bracketed_by_blocks():
    window = Window.of(1, 3, stride=2)
    within, around = inner_partition(window, (9,)), outer_partition(window, (9,))
    starts = window.starts((9,))[0]
    chosen = [p for p, label in enumerate(within.labels[0]) if label >= 0]
    owners = [{i for i, s in enumerate(starts) if s <= p < s + 3} for p in chosen]
    assert all(not a & b for a, b in combinations(owners, 2))
    assert around.labels[0] == tuple(range(9))


@pytest.mark.parametrize("twice", [False, True])
def test_projection_is_the_nearest_point(twice):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64)
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
