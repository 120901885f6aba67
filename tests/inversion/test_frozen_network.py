import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import cases
from unconv.errors import UnconvError
from unconv.inversion.frozen_network import LayerFunction, SideInformation
from unconv.inversion.jacobian import Jacobian


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


def make(layer="output"):
    torch.manual_seed(0)
    model = Functional().double().eval()
    model.norm.running_mean += 0.1
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return LayerFunction(model, layer, x.shape[1:]), x


@pytest.mark.parametrize("side_info", ["none", "switches", "gates"])
def test_at_the_true_image_nothing_changes(side_info):
    function, x = make()
    kept = x.clone()
    known = function.record(x, side_info)
    torch.testing.assert_close(function(x, known), function.model(x.clone()))
    assert torch.equal(x, kept)
    assert function.shape == (8, 3, 3)
    assert function.side_info_kinds == ("none", "switches", "gates")
    assert len(known.switches) == (0 if side_info == "none" else 3)
    assert len(known.gates) == (4 if side_info == "gates" else 0)


def test_with_known_gates_the_network_is_affine():
    function, x = make()
    known = function.record(x, "gates")
    a, b = torch.randn_like(x), torch.randn_like(x)
    zero = function(torch.zeros_like(x), known)
    both = function(2 * a - 3 * b, known) - zero
    torch.testing.assert_close(both, 2 * (function(a, known) - zero) - 3 * (function(b, known) - zero))
    free = function(2 * a - 3 * b) - function(torch.zeros_like(x))
    assert (free - both).abs().max() > 0.1


def test_known_switches_are_read_anywhere_else():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2)).double()
    x, other = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
    function = LayerFunction(model, "1", x.shape[1:])
    _, places = F.max_pool2d(model[0](x), 2, return_indices=True)
    expected = model[0](other).flatten(2).gather(2, places.flatten(2)).reshape(places.shape)
    torch.testing.assert_close(function(other, function.record(x, "switches")), expected)
    assert function.side_info_kinds == ("none", "switches")


LAYERS = ["layer1", "layer1.0.conv2", "layer2.0.relu", "avgpool", "fc", "output"]


@pytest.mark.parametrize(("name", "layer"), [*[("resnet18", layer) for layer in LAYERS], ("alexnet", "features.5")])
def test_layers_are_what_a_forward_hook_sees(name, layer):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    x = torch.randn(2, 3, 64, 64)
    seen = []
    module = model if layer == "output" else model.get_submodule(layer)
    handle = module.register_forward_hook(lambda _, __, y: seen.append(y.clone()))
    with torch.no_grad():
        model(x)
        handle.remove()
        function = LayerFunction(model, layer, x.shape[1:])
        known = function.record(x, "gates")
        torch.testing.assert_close(function(x, known), seen[0], rtol=1e-4, atol=1e-5)
    assert function.shape == seen[0].shape[1:]
    assert function(x.requires_grad_(), known).requires_grad


def test_tensors_of_tuples_and_dicts_and_axes_folded_into_the_batch():
    model, x = cases.outputs_of_many_kinds(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        h = model.conv(x)
    halves = torch.stack([h[:, :, :4], h[:, :, 4:]], 1)
    for layer, expected in {"pair[1][0]": 2 * h, "named['a']": h.mean((2, 3)), "windows": halves}.items():
        function = LayerFunction(model, layer, x.shape[1:])
        assert function.shape == expected.shape[1:]
        torch.testing.assert_close(function(x), expected)
    assert not LayerFunction(cases.without_gradient("detach"), "b", x.shape[1:]).differentiable


@pytest.mark.parametrize(
    ("layer", "channels", "message"),
    [
        ("nowhere", 3, "no layer 'nowhere'"),
        ("pair[2]", 3, r"no layer 'pair\[2\]'; the places in its output are \[0\], \[1\]\[0\]"),
        ("named['b']", 3, "int64, no floating-point tensor"),
        ("idle", 3, "does not reach idle"),
        ("conv", 2, "cannot take an image"),
    ],
)
def test_layers_that_do_not_exist_and_images_that_do_not_fit_are_refused(layer, channels, message):
    with pytest.raises(UnconvError, match=message):
        LayerFunction(cases.outputs_of_many_kinds(), layer, (channels, 8, 8))


def test_an_activation_in_place_whose_result_is_dropped():
    def forward(net, x):
        h = net.conv(x)
        net.act(h)
        return h

    torch.manual_seed(0)
    model, x = cases.Net(forward, conv=nn.Conv2d(3, 4, 1), act=nn.ReLU(inplace=True)), torch.randn(2, 3, 4, 4)
    function = LayerFunction(model, "output", x.shape[1:])
    known = function.record(x, "gates")
    with torch.no_grad():
        torch.testing.assert_close(function(x), model(x))
        torch.testing.assert_close(function(x, known), model(x))
    assert (function(-x, known) < 0).any()
    jacobian = torch.func.jacrev(function)(x)
    assert torch.isfinite(jacobian).all()
    assert jacobian.any()


def test_hooks_count_and_weights_that_are_results_do_no_harm():
    model, x = cases.hooked("convolution").eval(), torch.rand(2, 3, 8, 8)
    nn.utils.weight_norm(model[4])
    model(x)  # the filters are now no leaf
    with torch.no_grad():
        torch.testing.assert_close(LayerFunction(model, "4", x.shape[1:])(x), model(x))


def test_attention_has_the_second_derivative_that_products_need():
    def forward(net, x):
        h = net.first(x)
        tokens = h.flatten(2).transpose(1, 2)
        return net.last(h + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape_as(h))

    torch.manual_seed(0)
    model, x = cases.Net(forward, first=nn.Conv2d(3, 4, 2, 2), last=nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 8, 8)
    function = LayerFunction(model, "last", x.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(function(x), model(x))
    y, pull = torch.func.vjp(function, x)
    v, direction = torch.randn_like(y), torch.randn_like(x)
    pushed = Jacobian(function, x).forward(direction)
    torch.testing.assert_close((pushed * v).sum(), (pull(v)[0] * direction).sum(), rtol=1e-4, atol=1e-5)


def test_rounding_of_half_precision_is_no_randomness():
    model, x = cases.autocast(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    function = LayerFunction(model, "b", x.shape[1:])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.b(model.a(x).relu()).float()
    assert (function(x) - expected).abs().max() < 0.02 * expected.abs().max()


def test_side_information_of_another_network_is_refused():
    function, x = make()
    known = function.record(x, "gates")
    few, many = known.switches[:1], (*known.switches, known.switches[0])
    for images, given, message in [
        (x, SideInformation("switches", few), "the network has more"),
        (x, SideInformation("switches", many), "give its own"),
        (x[:1], known, "give its own"),
    ]:
        with pytest.raises(UnconvError, match=message):
            function(images, given)
