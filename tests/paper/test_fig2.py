"""Figure 2 against the quantiles that were checked, and against a dense matrix."""

import pytest
import torch

from unconv.measure.rip import draw_codes
from unconv.paper import fig2
from unconv.paper.thm31 import Sizes
from unconv.sparsity import Pooled


@pytest.fixture(scope="module")
def result():
    return fig2.run(draws=3000)


def test_quantiles_are_the_checked_ones(result):
    for name, known in result["paper"]["checked"].items():
        for key, value in known.items():
            assert result["ours"][name][key] == pytest.approx(value, abs=0.02), (name, key)


def test_one_bank_against_the_dense_matrix():
    sizes = Sizes(k=3, M=4, l=3, D=9, K=6)
    operator = sizes.operator(1)
    w = operator.to_dense()
    found = fig2.measure(operator, 3, 5, 7)
    z = next(draw_codes(operator, Pooled("map"), 3, 5, seed=7)).dense()
    for i, code in enumerate(z):
        flat = code.flatten()
        x = w.T @ flat
        h = w @ x
        assert found["ratio"][i] == pytest.approx((x.norm() / flat.norm()).item())
        assert found["gram_everywhere"][i] == pytest.approx((h.norm() / flat.norm()).item())
        assert found["gram_on_support"][i] == pytest.approx((h[flat != 0].norm() / flat.norm()).item())
        blocks = h.reshape(6, 7)
        peaks = blocks.abs().max(1)
        keep = peaks.values.topk(3).indices
        known, fixed = torch.zeros(6, 7, dtype=w.dtype), torch.zeros(6, 7, dtype=w.dtype)
        known[keep, peaks.indices[keep]] = blocks[keep, peaks.indices[keep]]
        fixed[keep, 0] = blocks[keep, peaks.indices[keep]]
        for name, estimate in (
            ("error_true_switches", h * (flat != 0)),
            ("error_known_switches", known.flatten()),
            ("error_fixed_switches", fixed.flatten()),
        ):
            assert found[name][i] == pytest.approx(((w.T @ estimate - x).norm() / x.norm()).item())
