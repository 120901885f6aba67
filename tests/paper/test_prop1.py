"""Perfect reconstruction, and the pairing statistic on filters whose answer is known."""

import pytest
import torch

from unconv.paper import prop1


def test_the_operator_is_orthonormal():
    dense = prop1.orthonormal_operator(3).to_dense()
    torch.testing.assert_close(dense @ dense.T, torch.eye(len(dense), dtype=dense.dtype))


def test_reconstruction_needs_pairs(context):
    ours = prop1.run(context)["ours"]["reconstruction"]
    assert ours["with_pairs"] < 1e-12
    # half of the energy of a Gaussian signal sits in positive coefficients
    assert ours["without_pairs"] == pytest.approx(0.5**0.5, abs=0.1)


def test_pairing_by_brute_force():
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[4] = -2.5 * weight[1]
    found = prop1.most_negative_cosines(weight)
    for i in range(6):
        cosines = [torch.cosine_similarity(weight[i].flatten(), weight[j].flatten(), 0) for j in range(6) if j != i]
        assert found[i].item() == pytest.approx(min(cosines).item(), abs=1e-6)
    assert found[1].item() == pytest.approx(-1)
