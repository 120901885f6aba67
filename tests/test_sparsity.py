"""Pooling, switches and projections against loops over regions and torch's own pooling."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import draw
from strategies import regions, windows
from unconv.errors import UsageError
from unconv.sparsity import AveragePool, Code, Pooled, TopK, Window, keep_largest


@st.composite
def maps(choose):
    window, least = choose(windows(choose(st.integers(1, 3))))
    return window, tuple(n + choose(st.integers(0, 4)) for n in least)


@settings(max_examples=200, deadline=None)
@given(maps(), st.integers(0, 99), st.booleans())
def test_max_pool_by_definition_with_ties_to_the_first(case, seed, with_ties):
    window, spatial = case
    h = draw(2, 2, *spatial, seed=seed)
    if with_ties:
        h = h.round()
    values, switches = window.max_pool(h)
    places = list(regions(window, spatial))
    assert values.shape[2:] == window.pooled_shape(spatial)
    flat, values, switches = h.flatten(2), values.flatten(2), switches.flatten(2)
    for r, region in enumerate(places):
        if not region:
            continue
        for n, k in itertools.product(range(2), range(2)):
            best = max(flat[n, k, p].item() for p in region)
            first = next(p for p in region if flat[n, k, p] == best)
            assert values[n, k, r] == best
            assert switches[n, k, r] == first


@settings(max_examples=100, deadline=None)
@given(maps())
def test_contains_and_corners_by_definition(case):
    window, spatial = case
    places = list(regions(window, spatial))
    corners = window.corners(spatial).flatten()
    pooled = window.pooled_shape(spatial)
    for place in range(math.prod(spatial)):
        expected = [place in region for region in places]
        inside = window.contains(torch.full((1, 1, *pooled), place), spatial).flatten().tolist()
        assert inside == expected
    for corner, region in zip(corners.tolist(), places):
        if region:
            assert corner == min(region)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_dropped_region_does_not_erase_the_place_it_shares(sign):
    h = torch.zeros(1, 1, 7)
    h[0, 0, 2] = 4.0 * sign
    h[0, 0, 5] = 1.0
    for k in (1, 2, 3):
        dense = Pooled(Window.of(1, 3, stride=2), k=k).project(h).dense()
        assert dense[0, 0, 2] == 4.0 * sign


def test_projection_is_the_nearest_point_of_the_model():
    h = draw(1, 3, 4)
    code = Pooled(2, k=2).project(h)
    distance = (code.dense() - h).norm()
    best = math.inf
    blocks = [(c, b) for c in range(3) for b in range(2)]
    for chosen in itertools.combinations(blocks, 2):
        for places in itertools.product(range(2), repeat=2):
            z = torch.zeros_like(h)
            for (c, b), p in zip(chosen, places):
                z[0, c, 2 * b + p] = h[0, c, 2 * b + p]
            best = min(best, (z - h).norm().item())
    assert distance.item() == pytest.approx(best)


def test_fixed_switches_stand_in_the_corner():
    code = Pooled(2).project(draw(2, 3, 4, 6)).with_fixed_switches()
    dense = code.dense()
    assert torch.equal(dense[..., ::2, ::2], code.values)
    assert (dense != 0).sum() == code.values.numel()
    with pytest.raises(UsageError, match="no switches to replace"):
        TopK(2).project(draw(1, 1, 4, 4)).with_fixed_switches()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.integers(0, 14),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_keep_largest_is_a_stable_sort(entries, k, dtype):
    kept = keep_largest(torch.tensor([entries], dtype=dtype), k)[0].tolist()
    order = sorted(range(len(entries)), key=lambda i: (-abs(entries[i]), i))[:k]
    assert kept == [float(v) if i in order else 0.0 for i, v in enumerate(entries)]


def test_keep_largest_in_half_precision_and_many_rows():
    values = draw(5, 3, 7).to(torch.bfloat16)
    kept = keep_largest(values, 4)
    assert ((kept != 0).flatten(1).sum(1) == 4).all()
    assert torch.equal(kept[kept != 0], values[kept != 0])


@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_pool_adjoint(count_include_pad):
    pool = AveragePool(Window.of(2, 3, stride=2, padding=1), count_include_pad)
    h = draw(2, 3, 7, 6)
    y = draw(*pool.forward(h).shape, seed=1)
    assert torch.allclose((pool.forward(h) * y).sum(), (h * pool.adjoint(y, (7, 6))).sum())
    code = Code(y, None, (3, 7, 6), pool)
    assert torch.equal(code.dense(), pool.adjoint(y, (7, 6)))
    with pytest.raises(UsageError, match="no switches"):
        code.support()


def test_codes_describe_themselves():
    h = torch.tensor([[[-3.0, 1.0, 0.0, 0.0]]])
    assert repr(Pooled(2).project(h)) == "Code(max-pooled (1, 1, 2) of (1, 4), 50.0 % non-zero)"
