"""Spectra against dense decompositions, circular ones of matrices that torch's own circular padding makes."""

import math

import pytest
import torch
import torch.nn.functional as F

from cases import draw, gaussian
from unconv.certify.spectrum import circular_singular_values, spectrum
from unconv.errors import UsageError
from unconv.operators import ConvOperator

CASES = {
    "1-D": ((4, 3, 3), (3, 12), {}),
    "stride": ((5, 2, 3), (2, 12), {"stride": 2}),
    "wide stride": ((3, 2, 2), (2, 12), {"stride": 3}),
    "2-D": ((3, 2, 3, 3), (2, 6, 5), {"padding": 1}),
    "2-D, odd strides": ((4, 2, 3, 2), (2, 6, 6), {"stride": (2, 3), "padding": (1, 0)}),
    "groups": ((6, 2, 3), (4, 10), {"groups": 2, "padding": 1}),
    "groups and stride": ((4, 1, 3, 3), (2, 6, 6), {"groups": 2, "stride": 2, "padding": 1}),
    "dilation": ((3, 2, 3), (2, 11), {"dilation": 2, "padding": 4}),
    "tall, whole columns": ((8, 2, 3), (2, 12), {"padding": 2}),
    "3-D": ((2, 1, 2, 2, 2), (1, 4, 4, 4), {"stride": 2}),
}


def make(name):
    shape, input_shape, geometry = CASES[name]
    return gaussian(*shape, size=input_shape[1:], **geometry)


def circular_matrix(operator):
    """The matrix on a map that wraps around, by torch's circular padding of unit vectors."""
    n = math.prod(operator.input_shape)
    spread = [d * (k - 1) for k, d in zip(operator.weight.shape[2:], operator.dilation)]
    pad = [v for r in reversed(spread) for v in (0, r)]
    x = F.pad(torch.eye(n, dtype=torch.float64).reshape(n, *operator.input_shape), pad, mode="circular")
    return operator.unpadded(x.shape[2:]).forward(x).reshape(n, -1).T


@pytest.mark.parametrize("name", CASES)
def test_maps_that_wrap_around_have_all_singular_values_of_the_dense_matrix(name):
    operator = make(name)
    if any(n % s for n, s in zip(operator.input_shape[1:], operator.stride)):
        pytest.skip("the map is no whole number of strides")
    matrix = circular_matrix(operator)
    values = torch.linalg.svdvals(matrix)
    ours = circular_singular_values(operator).sort(descending=True).values
    torch.testing.assert_close(ours, values, rtol=1e-10, atol=1e-10)
    found = spectrum(operator, circular=True)
    rank = int(torch.linalg.matrix_rank(matrix))
    assert found.shape == tuple(matrix.shape)
    assert found.rank == (rank, rank)
    assert found.nullity == (matrix.shape[1] - rank,) * 2
    assert found.largest[0] <= values[0] + 1e-12
    assert values[0] <= found.largest[1] + 1e-12


@pytest.mark.parametrize("whole", [2**21, 0], ids=["decomposed", "bounded"])
@pytest.mark.parametrize("name", CASES)
def test_zero_padding_and_none_lie_between_the_bounds(name, whole):
    operator = make(name)
    matrix = operator.to_dense()
    values = torch.linalg.svdvals(matrix)
    found = spectrum(operator, whole=whole)
    rank = int(torch.linalg.matrix_rank(matrix))
    for (low, high), value in [(found.largest, values[0].item()), (found.smallest, values[-1].item())]:
        assert low - 1e-10 <= value <= high + 1e-10
    assert found.rank[0] <= rank <= found.rank[1]
    assert found.nullity[0] <= matrix.shape[1] - rank <= found.nullity[1]
    if whole:
        assert found.how == "dense"
        assert found.rank == (rank, rank)


def test_whole_rows_and_whole_columns_have_a_proven_smallest_value():
    wide = gaussian(2, 8, 3, size=(14,))
    tall = make("tall, whole columns")
    for operator in (wide, tall):
        found = spectrum(operator, whole=0, steps=2)  # too few steps for Lanczos to say anything
        value = torch.linalg.svdvals(operator.to_dense())[-1].item()
        assert 0 < found.smallest[0] <= value <= found.smallest[1]
        assert found.how == "bounds"
        assert found.rank == (min(found.shape),) * 2


def test_dependent_filters_leave_dimensions_unseen():
    weight = draw(2, 3, 3)
    operator = ConvOperator(torch.cat([weight, weight]), (3, 12))
    for found in (spectrum(operator), spectrum(operator, whole=0), spectrum(operator, circular=True)):
        assert found.smallest[0] == 0
        assert found.rank[1] < 3 * found.shape[0] // 4
        assert found.nullity[0] > 0


def test_words_and_bad_input_are_one_line():
    assert "of 60 input dimensions unseen (dense)" in str(spectrum(make("2-D")))
    with pytest.raises(UsageError, match="does not wrap around at stride"):
        spectrum(ConvOperator(torch.ones(1, 1, 2), (1, 9), stride=2), circular=True)
    with pytest.raises(UsageError, match="give a ConvOperator"):
        spectrum(torch.eye(3))  # pyright: ignore[reportArgumentType]
