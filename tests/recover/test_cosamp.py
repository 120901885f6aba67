"""Model-based CoSaMP: the support of sums of two codes, against brute force; and recovery where steps fail."""

from itertools import combinations

import pytest
import torch
from tests.recover.conftest import of_columns

from cases import draw
from unconv.recover import cosamp
from unconv.recover.cosamp import doubled_support
from unconv.sparsity import Code, Pooled, TopK


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_doubled_support_of_pooled_codes_is_that_of_brute_force(k, seed):
    """All sets of at most two places per region and 2k in all; the largest energy wins."""
    h = draw(1, 2, 6, seed=seed)
    flat = h.flatten()
    sets = (
        chosen
        for chosen in combinations(range(12), 2 * k)
        if max(sum(place // 3 == region for place in chosen) for region in range(4)) <= 2
    )
    best = max(sets, key=lambda chosen: flat[list(chosen)].square().sum().item())
    assert doubled_support(Pooled(3, k=k), h).flatten().nonzero().flatten().tolist() == list(best)


def test_a_model_of_ones_own_is_projected_onto_twice():
    class FirstHalf:
        """The two largest entries among the first half of the places."""

        def project(self, h):
            half = torch.arange(h.shape[-1]) < h.shape[-1] // 2
            return Code(TopK(2).project(h * half).values, None, tuple(h.shape[1:]))

    matrix = draw(30, 40)
    z = torch.zeros(3, 40, dtype=torch.float64)
    z[:, [3, 11]] = draw(3, 2, seed=1)
    support = doubled_support(FirstHalf(), draw(3, 40, seed=2))
    assert support[:, :20].sum(1).tolist() == [4, 4, 4]
    assert not support[:, 20:].any()
    found = cosamp(of_columns(matrix), z @ matrix.T, FirstHalf())
    assert torch.allclose(found.value.code.dense(), z, atol=1e-5)
