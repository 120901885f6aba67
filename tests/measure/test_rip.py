"""Against the dense matrix W^T, in every geometry and by every method; and the paper's Figures 2 and 3."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from cases import gaussian
from strategies import convolutions, windows
from unconv.measure.rip import Method, RatioSummary, draw_codes, sample_ratios
from unconv.operators import ConvOperator
from unconv.paper.fig2 import SIZES
from unconv.sparsity import Pooled, Window


@st.composite
def layers(choose) -> tuple[ConvOperator, Pooled, int]:
    """A convolution, regions on its output, and a k that they allow."""
    operator = choose(convolutions())
    filters, *spatial = operator.output_shape
    region = "map"
    if choose(st.booleans()):
        region, least = choose(windows(len(spatial)))
        assume(all(n <= m for n, m in zip(least, spatial, strict=True)))
    model = Pooled(region)
    regions = filters * int(model.window(spatial).places(spatial)[1].any(0).sum())
    assume(regions)
    return operator, model, choose(st.integers(1, min(regions, 12)))


@settings(deadline=None, max_examples=60)
@given(layers(), st.sampled_from(["full", "cropped"]))
def test_every_method_agrees_with_the_dense_matrix(layer, boundary) -> None:
    operator, model, k = layer
    bounded = operator.full() if boundary == "full" else operator
    (z,) = draw_codes(operator, model, k, 5, seed=3)
    dense = z.dense().flatten(1)
    expected = (dense @ bounded.to_dense()).norm(dim=1) / dense.norm(dim=1)
    methods: list[Method] = ["auto", "dense", "gram"]
    for method in methods[:2] if any(bounded.padding) else methods:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            ratios = sample_ratios(operator.to(dtype), model, k, 5, seed=3, boundary=boundary, method=method)
            assert ratios.dtype == dtype
            # squares: where W^T z nearly cancels, the root of a Gram sum has half of its digits
            torch.testing.assert_close(ratios.double().square(), expected.square(), rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(layers())
def test_codes_are_model_k_sparse(layer) -> None:
    operator, model, k = layer
    window = model.window(operator.output_shape[1:])
    (codes,) = draw_codes(operator, model, k, 20, seed=1)
    dense = codes.dense()
    assert dense.shape == (20, *operator.output_shape)
    entries = (dense != 0).flatten(1).sum(1)
    assert (entries <= k).all()
    torch.testing.assert_close(codes.norms, dense.flatten(1).norm(dim=1))
    if not window.overlapping:
        assert (entries == k).all()
        for z in dense:  # pooling keeps everything: no region holds two entries
            kept = Pooled(window).project(z.unsqueeze(0)).dense()[0]
            torch.testing.assert_close(kept, z, rtol=0, atol=0)


@pytest.mark.parametrize(("k", "region"), [(7, 2), (90, Window.of(2, 3, stride=2))], ids=["few", "many, overlapping"])
def test_codes_do_not_depend_on_the_batch(k, region) -> None:
    operator = gaussian(8, 2, 3, 3, size=(12, 12))
    (whole,) = draw_codes(operator, Pooled(region), k, 23, seed=5)
    parts = list(draw_codes(operator, Pooled(region), k, 23, seed=5, batch=4))
    assert [len(part.values) for part in parts] == [4, 4, 4, 4, 4, 3]
    for name in ("channels", "places", "values"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    (other,) = draw_codes(operator, Pooled(region), k, 23, seed=6)
    assert not torch.equal(other.places, whole.places)


@pytest.mark.parametrize("k", [2, 80], ids=["all sets at once", "set by set"])
def test_regions_and_places_are_uniform(k) -> None:
    """Frequencies within 5 standard deviations; the last region of each axis is cut to one place."""
    operator = gaussian(30, 1, 1, size=(5,))
    window = Window.of(1, 2, ceil_mode=True)
    samples = 4000
    (codes,) = draw_codes(operator, Pooled(window), k, samples, seed=0)
    frequency = (codes.dense() != 0).double().mean(0)
    for place, share in enumerate([0.5, 0.5, 0.5, 0.5, 1.0]):
        p = share * k / 90
        assert (frequency[:, place] - p).abs().max() < 5 * math.sqrt(p * (1 - p) / samples)


def test_a_place_of_two_regions_is_active_once() -> None:
    operator = gaussian(1, 1, 1, size=(3,))
    (codes,) = draw_codes(operator, Pooled(Window.of(1, 2, stride=1)), 2, 200, seed=0)
    shared = (codes.places == 1).all(dim=1)
    assert 0 < shared.sum() < 200
    assert (codes.values[shared] != 0).sum(dim=1).eq(1).all()
    assert (codes.values[shared][:, 0] != 0).all()
    assert (codes.values[~shared] != 0).all()


def test_summary_against_numpy() -> None:
    r = torch.rand(501, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.6
    summary, a = RatioSummary.of(r), r.numpy()
    assert summary.samples == 501
    assert (summary.p01, summary.p50, summary.p99) == tuple(np.percentile(a, [1, 50, 99]))
    assert (summary.min, summary.max) == (a.min(), a.max())
    assert summary.mean == pytest.approx(a.mean(), rel=1e-14)
    assert summary.std == pytest.approx(a.std(ddof=1), rel=1e-14)
    assert summary.delta == max(a.max() ** 2 - 1, 1 - a.min() ** 2)
    assert RatioSummary.of(torch.tensor([2.0])).std == 0
    assert RatioSummary.of(torch.tensor([2.0])).delta == 3


def test_the_fast_way_has_the_distribution_of_dense_transposed_convolutions():
    """Figure 2's layer, against codes drawn and transposed by code that shares nothing with ours."""
    operator = SIZES.operator(0)
    rng = np.random.default_rng(7)
    z = np.zeros((4000, *operator.output_shape))
    for code in z:
        channels = rng.permutation(operator.output_shape[0])[: SIZES.k]
        code[channels, rng.integers(0, operator.output_shape[1], SIZES.k)] = rng.uniform(-1, 1, SIZES.k)
    x = torch.nn.functional.conv_transpose1d(torch.from_numpy(z), operator.weight).numpy()
    dense = np.linalg.norm(x.reshape(4000, -1), axis=1) / np.linalg.norm(z.reshape(4000, -1), axis=1)
    fast = sample_ratios(operator, Pooled("map"), SIZES.k, 4000, seed=1).numpy()
    assert stats.ks_2samp(fast, dense).pvalue > 0.01
    other = sample_ratios(operator, Pooled("map"), 3, 4000, seed=1).numpy()
    assert stats.ks_2samp(other, dense).pvalue < 1e-4
