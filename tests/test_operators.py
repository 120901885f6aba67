"""ConvOperator against dense matrices, torch.func.vjp and torch's own convolutions."""

import math

import pytest
import torch
from hypothesis import given, settings

from cases import draw
from strategies import convolutions
from unconv.linalg import relative_norm
from unconv.operators import ConvOperator, gaussian_like
from unconv.testing import OperatorConformance


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_adjoint_over_geometries(operator):
    OperatorConformance().check(operator)


class TestConvOperatorConformance(OperatorConformance):
    def operators(self):
        yield ConvOperator(draw(4, 2, 3), (2, 9), stride=2, padding=1)
        yield ConvOperator(draw(4, 2, 3, 3), (4, 9, 8), stride=(2, 1), padding=1, dilation=(1, 2), groups=2)
        yield ConvOperator(draw(2, 1, 2, 3, 2), (1, 4, 5, 4))


class TestFloat32Conformance(OperatorConformance):
    dtype = torch.float32
    tolerance = 1e-5

    def operators(self):
        yield ConvOperator(draw(5, 3, 3, 3, dtype=torch.float32), (3, 10, 7), padding=1)


def test_conformance_catches_a_cropped_adjoint():
    class Wrong(ConvOperator):
        def adjoint(self, z):
            x = super().adjoint(z).clone()
            x[..., 0] = 0
            return x

    with pytest.raises(AssertionError, match="not the adjoint"):
        OperatorConformance().check(Wrong(draw(2, 1, 3), (1, 6)))


def test_forward_is_torch_convolution():
    weight, x = draw(6, 2, 3, 3), draw(2, 4, 11, 9, seed=1)
    module = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, dtype=torch.float64)
    module.weight.data = weight
    operator = ConvOperator(weight, (4, 11, 9), stride=2, padding=1, groups=2)
    assert torch.equal(operator.forward(x), module(x))


def test_batches_of_any_depth():
    operator = ConvOperator(draw(4, 2, 3, 3), (2, 6, 6))
    x = draw(2, 3, 2, 6, 6)
    h = operator.forward(x)
    assert h.shape == (2, 3, 4, 4, 4)
    assert torch.allclose(h[1, 2], operator.forward(x[1, 2]))
    assert torch.allclose(operator.adjoint(h)[1, 2], operator.adjoint(h[1, 2]))


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_norm_is_the_largest_singular_value(operator):
    exact = torch.linalg.matrix_norm(operator.to_dense(), 2).item()
    assert math.isclose(operator.norm(tolerance=1e-10), exact, rel_tol=1e-6, abs_tol=1e-12)


def test_full_boundary_keeps_the_norm_of_border_filters():
    operator = ConvOperator(draw(3, 2, 3, 3), (2, 5, 5), padding=1).normalised()
    full = operator.full()
    assert full.input_shape == (2, 7, 7)
    assert full.output_shape == operator.output_shape
    rows = full.to_dense().norm(dim=1)
    assert torch.allclose(rows, torch.ones_like(rows))
    assert operator.to_dense().norm(dim=1).min() < 0.999
    z = draw(1, *operator.output_shape)
    assert torch.allclose(full.adjoint(z)[..., 1:-1, 1:-1], operator.adjoint(z))


def test_gaussian_filters_have_unit_norm_in_expectation_and_a_seed():
    operator = ConvOperator(draw(400, 8, 3, 3), (8, 5, 5))
    drawn = operator.gaussian(3)
    assert torch.equal(drawn.weight, gaussian_like(operator.weight, 3))
    assert not torch.equal(drawn.weight, operator.gaussian(4).weight)
    assert abs(drawn.weight.flatten(1).square().sum(1).mean().item() - 1) < 0.03


def test_normalised_leaves_zero_filters():
    weight = draw(3, 1, 3)
    weight[1] = 0
    norms = ConvOperator(weight, (1, 6)).normalised().weight.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-16, 1e-12, 1e16])
def test_norms_do_not_depend_on_the_unit_of_the_filters(scale):
    operator = ConvOperator(scale * draw(4, 2, 3, 3, dtype=torch.float32), (2, 8, 8), padding=1)
    exact = torch.linalg.matrix_norm(operator.to_dense().double(), 2).item()
    assert math.isclose(operator.norm(), exact, rel_tol=1e-6)
    assert torch.allclose(operator.normalised().weight.flatten(1).norm(dim=1), torch.ones(4))


def test_relative_errors_of_huge_inputs_are_numbers():
    x = torch.full((1, 3, 4), 1e25)
    assert relative_norm(0.5 * x, x).item() == pytest.approx(0.5)
