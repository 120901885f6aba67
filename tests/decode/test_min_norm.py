"""The minimum-norm solution against the pseudo-inverse, and the equations against their definition."""

import pytest
import torch
import torch.nn.functional as F

from cases import draw
from unconv.conv_block import Activation, ConvBlock, identity
from unconv.decode.linear_system import Equations, equations
from unconv.decode.min_norm import min_norm
from unconv.decode.preimages import preimages
from unconv.errors import UnconvError
from unconv.operators import ConvOperator
from unconv.sparsity import AveragePool, Code, Pooled, Window
from unconv.testing import SolverConformance

RELU = Activation("relu", torch.relu)
NONE = Activation("none", identity)


def make_stage(activation=RELU, pooling=None, bias=True, filters=7, stride=1):
    operator = ConvOperator(draw(filters, 3, 3, 3), (3, 6, 7), padding=1, stride=stride)
    return ConvBlock("conv", operator, draw(filters, seed=5) if bias else None, activation, pooling)


class TestMinNormConformance(SolverConformance):
    def solve(self, operator, target):
        mask = torch.ones_like(target, dtype=torch.bool)
        return min_norm(Equations(operator, target, mask), tolerance=1e-8)


POOLINGS = [None, Window.of(2, 2), Window.of(2, 3, stride=2, padding=1), Window.of(2, 2, ceil_mode=True)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", [RELU, NONE], ids=lambda a: a.name)
@pytest.mark.parametrize("bias", [True, False])
def test_solution_is_the_pseudo_inverse_of_the_rows_that_the_code_names(pooling, activation, bias):
    stage = make_stage(activation, pooling, bias)
    x = draw(2, 3, 6, 7, seed=1)
    code = stage.encode(x)
    system = equations(stage, code)
    solution = min_norm(system, tolerance=1e-12, max_steps=2000)
    dense = stage.operator.to_dense()
    for n in range(2):
        rows = system.mask[n].flatten()
        h = stage.preactivation(x)[n].flatten()
        offset = 0 if stage.bias is None else stage.bias[:, None].expand(-1, 42).flatten()
        expected = torch.linalg.pinv(dense[rows]) @ (h - offset)[rows]
        assert torch.allclose(solution.value[n].flatten(), expected, atol=1e-6)
        if activation is RELU:
            assert (h[rows] > 0).all()


def test_a_place_that_two_regions_name_is_one_equation():
    stage = make_stage(NONE, Window.of(2, 3, stride=1))
    code = stage.encode(draw(1, 3, 6, 7))
    system = equations(stage, code)
    assert system.mask.sum() < code.values[0].numel()


def test_contradictions_end_in_least_squares():
    stage = make_stage(NONE, filters=40, bias=False)
    code = Code(draw(1, 40, 6, 7, seed=4), None, (40, 6, 7))
    solution = min_norm(equations(stage, code), tolerance=1e-6, max_steps=500)
    expected = torch.linalg.lstsq(stage.operator.to_dense(), code.values.reshape(-1, 1)).solution
    assert set(solution.status) == {"converged"}
    assert torch.allclose(solution.value.flatten(), expected.flatten(), atol=1e-6)
    assert solution.residual.item() > 0.1


@pytest.mark.parametrize("activation", [RELU, NONE], ids=lambda a: a.name)
def test_average_pooling_with_known_gates(activation):
    stage = make_stage(activation, AveragePool(Window.of(2, 2)), filters=40)
    x = draw(2, 3, 6, 7, seed=6)
    h = stage.preactivation(x)
    system = equations(stage, stage.encode(x), gates=h > 0)
    assert torch.allclose(system.forward(x), system.target)
    y = draw(*system.target.shape, seed=7)
    assert torch.allclose((system.forward(x) * y).sum(), (x * system.adjoint(y)).sum())
    assert min_norm(system, tolerance=1e-8, max_steps=500).residual.max() < 1e-6


def test_average_pooling_behind_relu_needs_gates():
    stage = make_stage(RELU, AveragePool(Window.of(2, 2)))
    with pytest.raises(UnconvError, match="side_info 'gates'"):
        equations(stage, stage.encode(draw(1, 3, 6, 7)))


@pytest.mark.parametrize(
    "function",
    [
        F.silu,
        F.gelu,
        F.hardswish,
        F.elu,
        F.leaky_relu,
        F.softplus,
        F.sigmoid,
        torch.tanh,
        F.mish,
        F.relu6,
        F.hardsigmoid,
    ],
    ids=lambda f: f.__name__,
)
def test_smooth_activations_are_inverted_where_they_determine_the_input(function):
    h = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    preimage, known = preimages(Activation(function.__name__, function), function(h))
    assert known.any()
    assert torch.allclose(preimage[known], h[known], atol=1e-6)
    assert (h[known] > 0).all()
    assert known[(h > 0.01) & (h < 2.9)].all()


def test_regions_that_the_papers_code_drops_are_no_equations():
    stage = make_stage(NONE, Window.of(2, 2), bias=False)
    code = Pooled(2, k=5).project(stage.operator.forward(draw(1, 3, 6, 7)))
    assert equations(stage, code).mask.sum() == 5
