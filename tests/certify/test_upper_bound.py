import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cases
from cases import gaussian
from unconv.certify.bracket import delta_bracket
from unconv.certify.exact import exact_delta
from unconv.certify.lower_bound import lower_bound
from unconv.certify.supports import outer_partition
from unconv.certify.upper_bound import layer_bounds, upper_bound
from unconv.operators import ConvOperator
from unconv.sparsity import Window


@st.composite
def small_cases(draw):
    """A small operator, a region, k, and the two switches of the model."""
    dims = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 2))
    weight = cases.draw(groups * draw(st.integers(1, 2)), draw(st.integers(1, 2)), *[draw(st.integers(1, 3))] * dims)
    weight = weight * draw(st.sampled_from([0.15, 0.5, 1.0])) + draw(st.sampled_from([0.0, 0.2]))
    geometry = {
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
    }
    size = geometry["dilation"] * (weight.shape[2] - 1) + 1
    spatial = [
        max(1, size - 2 * geometry["padding"]) + draw(st.integers(0, 4 if dims == 1 else 2)) for _ in range(dims)
    ]
    operator = ConvOperator(weight, (weight.shape[1] * groups, *spatial), **geometry)
    region = "map" if draw(st.booleans()) else draw(st.integers(1, min(3, *operator.output_shape[1:])))
    blocks = outer_partition(region, operator.output_shape[1:])
    k = draw(st.integers(1, min(3, operator.output_shape[0] * blocks.count)))
    return operator, region, k, draw(st.booleans()), draw(st.sampled_from(["full", "cropped"]))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(small_cases())
def test_exact_constant_lies_inside_the_bracket(case):
    operator, region, k, twice, boundary = case
    blocks = outer_partition(region, operator.output_shape[1:])
    if blocks.supports(operator.output_shape[0], k, twice=twice) > 20_000:
        return
    exact = exact_delta(operator, region, k, twice=twice, boundary=boundary)
    # not delta_bracket, which would enumerate, too
    lower = lower_bound(operator, region, k, twice=twice, boundary=boundary, effort=1e-3).delta
    upper = upper_bound(operator, region, k, twice=twice, boundary=boundary).value
    rounding = exact.ceiling - exact.delta
    assert rounding < 1e-10
    assert lower - rounding <= exact.delta <= upper + rounding
    assert exact.attained.delta <= exact.delta <= exact.ceiling


def test_spectral_bound_is_the_norm_of_a_large_map():
    # the norm on a finite map approaches the largest value of the symbol from below
    operator = gaussian(3, 2, 3, size=(400,))
    square = operator.norm(tolerance=1e-10) ** 2
    bound = upper_bound(operator, 1, 1000)
    assert square <= 1 + bound.bounds["spectral"] <= 1.01 * square


@pytest.mark.parametrize("size", [8, 31, 40, 200])
def test_coarse_frequencies_still_bound_the_norm(size):
    weight = torch.tensor([[[1.0, 2.0, 1.0]], [[1.0, -2.0, 1.0]]], dtype=torch.float64)
    operator = ConvOperator(weight, (1, size))
    top = torch.linalg.matrix_norm(operator.to_dense(), 2).item() ** 2
    assert 1 + upper_bound(operator, 1, 2 * (size - 2)).bounds["spectral"] >= top


def test_thresholding_beats_both_other_arguments_on_figure_2():
    operator = gaussian(48, 16, 5, size=(16,))
    bounds = upper_bound(operator, "map", 8).bounds
    assert bounds["thresholded"] < min(bounds["gershgorin"], bounds["spectral"])


def test_overlapping_regions_are_bracketed():
    operator = gaussian(2, 2, 3, size=(9,))
    window = Window.of(1, 3, stride=2)
    bracket = delta_bracket(operator, window, 2)
    # between the supports without any shared region, and all supports of two places
    dense = operator.to_dense()
    pairs = torch.combinations(torch.arange(len(dense)))
    values = torch.linalg.eigvalsh((dense @ dense.T)[pairs[:, :, None], pairs[:, None, :]])
    assert 0 < bracket.lower <= max(values.max().item() - 1, 1 - values.min().item()) <= bracket.upper


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("region", ["map", 2, Window.of(1, 3, stride=2)])
def test_all_bounds_of_a_layer_are_those_asked_for_one_by_one(region, groups):
    operator = gaussian(8, 60 // groups, 3, size=(9,), groups=groups).normalised()
    for refine in (True, False):
        found = layer_bounds(operator, region, 4, refine=refine)
        assert found == [upper_bound(operator, region, 4, twice=twice, refine=refine) for twice in (False, True)]
        assert ("thresholded" in found[0].bounds) <= refine


def test_cropping_costs_corner_filters_their_norm():
    # a filter whose whole mass is the corner tap that falls off at the border
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 0, 0] = 1
    operator = ConvOperator(weight, (1, 5, 5), padding=1)
    assert delta_bracket(operator, "map", 1, boundary="full").upper < 1e-12
    cropped = delta_bracket(operator, "map", 1, boundary="cropped")
    assert cropped.lower == pytest.approx(1)
    assert cropped.upper == pytest.approx(1)


def test_regions_of_unequal_size_are_bracketed():
    operator = gaussian(1, 2, 3, 3, size=(7, 7))  # a 5x5 map
    region = Window.of(2, 2, ceil_mode=True)
    bracket = delta_bracket(operator, region, 2, twice=True)
    assert bracket.lower <= exact_delta(operator, region, 2, twice=True).ceiling
    assert bracket.lower <= bracket.upper
