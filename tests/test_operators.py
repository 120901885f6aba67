"""ConvOperator against dense matrices, torch.func.vjp and torch's own convolutions."""

import math

import pytest
import torch
from hypothesis import given, settings

from cases import draw
from strategies import convolutions
from unconv.linalg import relative_norm
from unconv.operators import ConvOperator
from unconv.testing import OperatorConformance


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_adjoint_over_geometries(operator):
    OperatorConformance().check(operator)


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


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-16, 1e-12, 1e16])
def test_norms_do_not_depend_on_the_unit_of_the_filters(scale):
    operator = ConvOperator(scale * draw(4, 2, 3, 3, dtype=torch.float32), (2, 8, 8), padding=1)
    exact = torch.linalg.matrix_norm(operator.to_dense().double(), 2).item()
    assert math.isclose(operator.norm(), exact, rel_tol=1e-6)
    assert torch.allclose(operator.normalised().weight.flatten(1).norm(dim=1), torch.ones(4))


def test_relative_errors_of_huge_inputs_are_numbers():
    x = torch.full((1, 3, 4), 1e25)
    assert relative_norm(0.5 * x, x).item() == pytest.approx(0.5)
