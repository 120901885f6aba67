"""The minimum-norm solution against the pseudo-inverse, and the equations against their definition."""

import pytest
import torch
from tests.decode.conftest import ACTIVATIONS, draw, make_stage

import cases
from unconv.conv_block import Activation
from unconv.decode.linear_system import Equations, equations, min_norm
from unconv.decode.preimages import preimage_bounds
from unconv.errors import UnconvError
from unconv.sparsity import AveragePool, Window
from unconv.testing import SolverConformance

DIPPING = ("silu", "gelu", "mish", "hardswish")


class TestMinNormConformance(SolverConformance):
    def solve(self, operator, target):
        mask = torch.ones_like(target, dtype=torch.bool)
        return min_norm(Equations(operator, target, mask), tolerance=1e-8)


@pytest.mark.parametrize(
    "pooling", [None, Window.of(2, 2), Window.of(2, 3, stride=2, padding=1), Window.of(2, 2, ceil_mode=True)]
)
@pytest.mark.parametrize("activation", ["relu", "none", "leaky_relu"])
def test_solution_is_the_pseudo_inverse_of_the_rows_that_the_code_names(pooling, activation):
    stage = make_stage(pooling, activation, shape=(3, 6, 7))
    x = draw(stage)
    system = equations(stage, stage.encode(x))
    solution = min_norm(system, tolerance=1e-12, max_steps=2000)
    dense = stage.operator.to_dense()
    for n in range(2):
        rows = system.mask[n].flatten()
        h = stage.preactivation(x)[n].flatten()
        offset = stage.bias[:, None].expand(-1, 42).flatten()
        expected = torch.linalg.pinv(dense[rows]) @ (h - offset)[rows]
        assert torch.allclose(solution.value[n].flatten(), expected, atol=1e-6)
        if activation == "relu":
            assert (h[rows] > 0).all()


def test_a_place_that_two_regions_name_is_one_equation():
    stage = make_stage(Window.of(2, 3, stride=1), "none")
    code = stage.encode(draw(stage, 1))
    assert equations(stage, code).mask.sum() < code.values[0].numel()


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_average_pooling_with_known_gates(activation):
    stage = make_stage(AveragePool(Window.of(2, 2)), activation, filters=40)
    x = draw(stage)
    system = equations(stage, stage.encode(x), gates=stage.preactivation(x) > 0)
    assert torch.allclose(system.forward(x), system.target)
    y = cases.draw(*system.target.shape, seed=7)
    assert torch.allclose((system.forward(x) * y).sum(), (x * system.adjoint(y)).sum())
    assert min_norm(system, tolerance=1e-8, max_steps=500).residual.max() < 1e-6
    if activation == "relu":
        with pytest.raises(UnconvError, match="side_info 'gates'"):
            equations(stage, stage.encode(x))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in {"none", "relu"}])
def test_activations_are_inverted_where_they_determine_the_input(name):
    h = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    _, low, high = preimage_bounds(Activation(name, ACTIVATIONS[name]), ACTIVATIONS[name](h))
    known = low == high
    assert torch.allclose(low[known], h[known], atol=1e-6)
    assert known[(h > (0.01 if name in {*DIPPING, "relu6"} else -7)) & (h < 5.9)].all()
    if name in DIPPING:  # two pre-activations give the same value
        assert (h[known] > -0.01).all()
        both = (h < -0.01) & (h > -2.9)
        for end in (low, high):
            assert torch.allclose(ACTIVATIONS[name](end)[both], ACTIVATIONS[name](h)[both], atol=1e-6)
        assert ((low <= h + 1e-6) & (h <= high + 1e-6))[both].all()
