import pytest
import torch
from torch import nn

from unconv.inversion.jacobian import Jacobian


# torch has no second derivative of its hard sigmoid, which squeeze-and-excitation blocks are made of
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardsigmoid])
@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_jacobian_against_torch_func(make, side_info, activation):
    function, x = make(size=4, activation=activation)
    known = function.record(x, side_info)
    point = x + 0.05
    jacobian = Jacobian(lambda v: function(v, known), point)
    dense = torch.func.jacrev(lambda v: function(v, known))(point).reshape(jacobian.value.numel(), x.numel())
    v, w = torch.randn_like(x), torch.randn_like(jacobian.value)
    torch.testing.assert_close(jacobian.forward(v).flatten(), dense @ v.flatten())
    torch.testing.assert_close(jacobian.adjoint(w).flatten(), dense.T @ w.flatten())
    torch.testing.assert_close(jacobian.value, function(point, known))
