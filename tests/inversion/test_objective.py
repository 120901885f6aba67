import math

import pytest
import torch
from torch import nn

from unconv.errors import UnconvError
from unconv.inversion.box import Box
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.jacobian import Jacobian
from unconv.inversion.objective import ChannelWeights, Objective, check_features, is_constant


def test_channel_weights_are_the_inverse_of_a_covariance(make):
    function, x = make()
    known = function.record(x, "gates")
    weights = ChannelWeights.learn(Jacobian(lambda v: function(v, known), x), x, probes=2, shrinkage=0.01)
    assert weights.matrix is not None
    torch.testing.assert_close(weights.matrix, weights.matrix.mT)
    inverse = torch.linalg.inv(weights.matrix[0])  # one matrix at a time
    scaled = inverse - 0.01 * torch.eye(len(inverse), dtype=inverse.dtype)
    assert scaled.diagonal().mean() == pytest.approx(1, rel=1e-6)
    assert torch.linalg.eigvalsh(scaled).min() > -1e-8


def test_gradient_and_quadratic_are_the_derivatives_of_the_value(make):
    function, x = make(size=4)
    known = function.record(x, "gates")  # affine, so the quadratic model is exact
    box = Box(torch.tensor(-0.2), torch.tensor(0.3))
    weights = ChannelWeights.learn(Jacobian(lambda v: function(v, known), x), x, probes=2, shrinkage=0.01)
    objective = Objective.of(function, function(x, known), known, weights, box, bound=1.0)
    point = x + 0.05 * torch.randn_like(x)
    jacobian = Jacobian(objective.features_at, point)
    residual = objective.residual(point)

    def value(v):
        return objective.value(v, objective.residual(v)).sum()

    torch.testing.assert_close(objective.gradient(jacobian, point, residual), torch.func.grad(value)(point))
    v = torch.randn_like(x)
    hessian_product = torch.autograd.functional.hvp(value, point, v)[1]
    torch.testing.assert_close(objective.quadratic(jacobian, point)(v), hessian_product)
    alone = objective.select(torch.tensor([1]))
    torch.testing.assert_close(alone.value(point[1:], residual[1:]), objective.value(point, residual)[1:])


def test_features_that_do_not_fit_are_refused(make):
    function, x = make()
    features = function(x)
    with pytest.raises(UnconvError, match="give the features of this layer"):
        check_features(function, features[:, :5])
    with pytest.raises(UnconvError, match="NaN or infinite"):
        check_features(function, features * math.nan)

    class Rounded(nn.Module):
        def forward(self, x):
            return x.detach().round()

    rounded = LayerFunction(nn.Sequential(nn.Conv2d(3, 4, 1), Rounded()), "1", (3, 4, 4))
    check_features(rounded, torch.zeros(1, 4, 4, 4), gradient=False)
    with pytest.raises(UnconvError, match="no gradient passes"):
        check_features(rounded, torch.zeros(1, 4, 4, 4))


def test_constant_features():
    features = torch.stack([torch.zeros(3, 2), torch.ones(3, 2), torch.arange(6.0).reshape(3, 2)])
    assert is_constant(features).tolist() == [True, True, False]
    assert is_constant(torch.tensor([[0.0], [2.0]])).tolist() == [True, False]
