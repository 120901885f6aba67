"""Convolutions by fixed filters: the same values, and derivatives of derivatives, as torch's own."""

import pytest
import torch
import torch.nn.functional as F

from unconv.inversion.convolution import fixed_convolution

CASES = [
    ("conv1d", (2, 4, 11), (6, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    ("conv2d", (2, 3, 9, 8), (5, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": 2}),
    ("conv2d", (2, 4, 7, 7), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ("conv3d", (1, 2, 5, 4, 6), (3, 2, 2, 2, 2), {"stride": 2}),
]


@pytest.mark.parametrize(("name", "shape", "filters", "options"), CASES)
def test_values_and_both_derivatives_are_those_of_torch(name, shape, filters, options):
    torch.manual_seed(0)
    function = getattr(torch, name)
    weight, bias = torch.randn(filters).double(), torch.randn(filters[0]).double()
    x = torch.randn(shape).double().requires_grad_()
    y, ours = function(x, weight, bias, **options), fixed_convolution(function, (x, weight, bias), options)
    torch.testing.assert_close(ours, y)
    w = torch.randn_like(y).requires_grad_()
    v = torch.randn_like(x)
    pulled = [torch.autograd.grad(z, x, w, create_graph=True)[0] for z in (y, ours)]
    torch.testing.assert_close(pulled[1], pulled[0])
    pushed = [torch.autograd.grad(p, w, v)[0] for p in pulled]
    torch.testing.assert_close(pushed[1], pushed[0])
    torch.testing.assert_close(pushed[1], function(v, weight, **options))


def test_filters_that_are_trained_are_differentiated():
    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    y = fixed_convolution(F.conv2d, (x, weight), {"padding": "same"})
    torch.testing.assert_close(y, F.conv2d(x, weight, padding="same"))
    (gradient,) = torch.autograd.grad(fixed_convolution(F.conv2d, (x, weight), {}).sum(), weight)
    assert gradient.abs().sum() > 0


def test_an_image_without_a_batch_axis():
    x, weight = torch.randn(2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(fixed_convolution(F.conv2d, (x, weight), {}), F.conv2d(x, weight))
