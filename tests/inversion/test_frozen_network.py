import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from unconv.block_extraction import find_conv_blocks
from unconv.errors import UnconvError
from unconv.inversion.frozen_network import LayerFunction, SideInformation


class Functional(nn.Module):
    """Branches, functions in place, overlapping and adaptive poolings, several kinds of ReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.third = nn.Conv2d(6, 8, 3)

    def forward(self, x):
        x.add_(0.5)
        h = F.relu_(self.norm(self.first(x)))
        h = self.pool(h)
        g = self.second(h)
        g += h
        g = F.leaky_relu(g, 0.1).clamp(max=50)
        g = torch.max_pool2d(g, 2, stride=1)
        g = F.relu6(g, inplace=True)
        return self.third(F.adaptive_max_pool2d(g, 5)).relu_()


def make(seed=0):
    torch.manual_seed(seed)
    model = Functional().double().eval()
    model.norm.running_mean += 0.1
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return model, find_conv_blocks(model, x[:1]).get("third"), x


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_at_the_true_image_nothing_changes(side_info):
    model, stage, x = make()
    features = LayerFunction(model, stage, x.shape[1:])
    kept = x.clone()
    known = features.record(x, side_info)
    torch.testing.assert_close(features(x, known), model(x.clone()))
    assert torch.equal(x, kept)
    assert len(known.switches) == (0 if side_info == "none" else 3)
    assert len(known.gates) == (4 if side_info == "gates" else 0)


def test_with_known_gates_the_network_is_affine():
    model, stage, x = make()
    features = LayerFunction(model, stage, x.shape[1:])
    known = features.record(x, "gates")
    a, b = torch.randn_like(x), torch.randn_like(x)
    zero = features(torch.zeros_like(x), known)
    both = features(2 * a - 3 * b, known) - zero
    torch.testing.assert_close(both, 2 * (features(a, known) - zero) - 3 * (features(b, known) - zero))
    free = features(2 * a - 3 * b) - features(torch.zeros_like(x))
    assert (free - both).abs().max() > 0.1


def test_known_switches_are_read_anywhere_else():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2)).double()
    x, other = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
    features = LayerFunction(model, find_conv_blocks(model, x).get("0"), x.shape[1:])
    known = features.record(x, "switches")
    _, places = F.max_pool2d(model[0](x), 2, return_indices=True)
    expected = model[0](other).flatten(2).gather(2, places.flatten(2)).reshape(places.shape)
    torch.testing.assert_close(features(other, known), expected)


def test_jacobian_agrees_with_finite_differences_under_every_kind():
    model, stage, x = make()
    features = LayerFunction(model, stage, x.shape[1:])
    v = torch.randn_like(x)
    for side_info in ("none", "switches", "gates"):
        known = features.record(x, side_info)
        _, slope = torch.autograd.functional.jvp(lambda y, k=known: features(y, k), x, v)
        step = 1e-7
        ratio = (features(x + step * v, known) - features(x - step * v, known)) / (2 * step)
        torch.testing.assert_close(slope, ratio, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer1.0.conv2"), ("alexnet", "features.3")])
def test_other_architectures(name, layer):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    stage = find_conv_blocks(model, x).get(layer)
    features = LayerFunction(model, stage, x.shape[1:])
    with torch.no_grad():
        plain = features(x)
        assert torch.allclose(features(x, features.record(x, "gates")), plain, atol=1e-5)
    assert plain.shape[1:] == stage.code_shape


def test_attention_has_the_second_derivative_that_products_need():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            h = self.first(x)
            tokens = h.flatten(2).transpose(1, 2)
            h = h + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape_as(h)
            return self.last(h)

    torch.manual_seed(0)
    model, x = Attending(), torch.randn(2, 3, 8, 8)
    features = LayerFunction(model, find_conv_blocks(model, x).get("last"), x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(features(x), model(x))
    y, pull = torch.func.vjp(features, x)
    v = torch.randn_like(y)
    # J v by the derivative of J' u in the direction v, as Gauss-Newton takes it
    direction = torch.randn_like(x)
    u = torch.zeros_like(y, requires_grad=True)
    leaf = x.clone().requires_grad_()
    (back,) = torch.autograd.grad(features(leaf), leaf, u, create_graph=True)
    (pushed,) = torch.autograd.grad(back, u, direction)
    torch.testing.assert_close((pushed * v).sum(), (pull(v)[0] * direction).sum(), rtol=1e-4, atol=1e-5)


def test_network_is_left_alone():
    model, stage, x = make()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LayerFunction(model, stage, x.shape[1:])(x)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_knowledge_of_another_network_is_refused():
    model, stage, x = make()
    features = LayerFunction(model, stage, x.shape[1:])
    known = features.record(x, "gates")
    with pytest.raises(UnconvError, match="give its own"):
        features(x, SideInformation("switches", known.switches[:1]))
    with pytest.raises(UnconvError, match="give its own"):
        features(x, SideInformation("switches", (*known.switches, known.switches[0])))
    with pytest.raises(UnconvError, match="give its own"):
        features(x[:1], known)


def test_some_rows():
    model, stage, x = make()
    features = LayerFunction(model, stage, x.shape[1:])
    known = features.record(x, "gates").at(torch.tensor([1]))
    torch.testing.assert_close(features(x[1:], known), features(x[1:]))
