"""Metamers against plain forward passes, and hidden directions against singular values of dense Jacobians."""

from typing import Any

import pytest
import torch
from torch import nn

import cases
import unconv
from unconv.errors import UnconvError, UsageError
from unconv.inversion.frozen_network import LayerFunction
from unconv.unseen.metamers import hidden_directions
from unconv.unseen.pixels import PixelFunction


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


@pytest.mark.parametrize("model", [cases.vgg, lambda: nn.Sequential(cases.vgg()[:5], nn.GELU(), nn.AvgPool2d(4))])
def test_features_agree_and_images_do_not(model, image):
    net = model().eval()
    layer = str(len(net) - 1)
    found = unconv.metamers(net, layer, image, psnr=20, passes=600)
    assert found.agrees
    assert found.note == ""
    with torch.no_grad():
        features, others = net(found.image[None].clone()), net(found.metamer[None].clone())
    assert (others - features).norm() <= 1.01e-3 * features.norm()
    assert -10 * torch.log10((found.image - found.metamer).square().mean()) <= 20.5
    torch.testing.assert_close(found.image[None], image)


def test_a_layer_that_sees_everything_has_none(image):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 1)).eval()
    found = unconv.metamers(net, "0", image, psnr=20, passes=40, directions=2)
    assert found.nullity == 0
    assert found.relative_difference > 1e-3
    assert not found.agrees
    assert "does not show that there is none" in found.note


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_directions_are_those_of_the_dense_jacobian(image, dtype):
    net, image = cases.vgg().to(dtype).eval(), image.to(dtype)
    function = PixelFunction(LayerFunction(net, "8", (3, 16, 16)))
    directions, visibility, nullity = hidden_directions(function, image, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x).flatten(), image).flatten(1).double()
    values = torch.linalg.svdvals(jacobian)
    rank = torch.linalg.matrix_rank(jacobian, rtol=1e-5).item()
    assert nullity == 768 - rank
    assert nullity >= 512
    assert torch.linalg.vector_norm(jacobian @ directions.flatten(1).double().T) <= 1e-5 * values[0]
    assert visibility.max() <= 1e-4


def test_directions_of_a_large_image_are_seen_as_little_as_a_product_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU()).eval()
    large = torch.rand(1, 3, 38, 38, generator=torch.Generator().manual_seed(1))
    found = unconv.metamers(net, "1", large, passes=2, directions=2)
    assert found.nullity is None
    moved = [torch.func.jvp(net, (large,), (v[None],))[1].norm().item() for v in found.directions]
    random = torch.randn(40, *large.shape[1:])
    typical = [torch.func.jvp(net, (large,), (v[None] / v.norm(),))[1].norm().item() for v in random]
    mean = torch.tensor(typical).square().mean().sqrt().item()
    assert found.visibility.tolist() == pytest.approx([m / mean for m in moved], rel=0.1)
    assert max(moved) < 0.5 * min(typical)


@pytest.mark.parametrize("words", [{"psnr": 1}, {"tolerance": 0.0}, {"passes": 1}, {"directions": -1}], ids=str)
def test_wrong_arguments(image, words: dict[str, Any]):
    with pytest.raises(UsageError, match="at least"):
        unconv.metamers(cases.vgg(), "8", image, **words)


def test_a_layer_without_gradient(image):
    with pytest.raises(UnconvError, match="no gradient"):
        unconv.metamers(cases.without_gradient("detach"), "b", image)
