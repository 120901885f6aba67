"""Radius and smallest singular value against dense Jacobians of plain networks, and attempts to break the promises."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
import unconv
from unconv.errors import UnconvError, UsageError
from unconv.inversion.frozen_network import LayerFunction
from unconv.unseen.pixels import PixelFunction
from unconv.unseen.uniqueness import find_uniqueness


def image_of(*shape, seed=0):
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniqueness_of(net, layer, x, **options):
    return find_uniqueness(PixelFunction(LayerFunction(net, layer, x.shape[1:])), x, **options)


def wide():
    """More features than pixels, and a pooling on the way."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 30, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(30, 40, 3, padding=1),
                         nn.ReLU()).double().eval()  # fmt: skip


def branches(net, x):
    """Signs of what every ReLU reads and places of what every max pooling takes, by hooks on the plain network."""
    found = []

    def hook(module, args, output):
        if isinstance(module, nn.MaxPool2d):
            options = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            found.append(F.max_pool2d(args[0], *options, return_indices=True)[1])
        elif isinstance(module, nn.ReLU6 | nn.Hardtanh):
            low, high = getattr(module, "min_val", 0.0), getattr(module, "max_val", 6.0)
            found.append((args[0] > low).int() + (args[0] > high).int())
        elif isinstance(module, nn.ReLU | nn.LeakyReLU | nn.PReLU):
            found.append(args[0] > 0)

    handles = [m.register_forward_pre_hook(lambda m, args: hook(m, (args[0].clone(),), None)) for m in net.modules()]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def dense_radius(net, x):
    """The distance of the nearest plane: of every ReLU's input, and of every pair of a pooling's entries."""
    best = math.inf

    def nearest(function):
        value = function(x).flatten()
        rows = torch.autograd.functional.jacobian(lambda v: function(v).flatten(), x).flatten(1)
        return torch.where(rows.norm(dim=1) > 0, value.abs() / rows.norm(dim=1), math.inf).min().item()

    for depth, module in enumerate(net):

        def before(v, depth=depth):
            return net[:depth](v.clone())

        if isinstance(module, nn.ReLU):
            best = min(best, nearest(before))
        if isinstance(module, nn.MaxPool2d):
            h = before(x)
            places = F.max_pool2d(h, 2, return_indices=True)[1].flatten(2)
            numbers = torch.arange(h[0, 0].numel(), dtype=torch.float64).reshape(1, 1, *h.shape[2:])
            for entry in F.unfold(numbers, 2, stride=2).long()[0]:

                def lead(v, entry=entry, places=places, before=before):
                    h = before(v).flatten(2)
                    return h.gather(2, places) - h[:, :, entry]

                best = min(best, nearest(lead))
    return best


@pytest.mark.parametrize("size", [12, 20], ids=["every gradient", "by random probes"])
def test_the_radius_is_the_distance_of_the_nearest_plane(size):
    net = cases.vgg().double().eval()
    x = image_of(3, size, size)
    found = uniqueness_of(net, "8", x, whole=0)
    low, high = found.radius
    assert found.certain == (size == 12)
    assert low <= dense_radius(net, x) * (1 + 1e-9)
    assert low == pytest.approx(dense_radius(net, x), rel=1e-6)
    assert high == pytest.approx(low, rel=1e-5)
    assert (found.witness - x[0]).norm().item() == pytest.approx(high, rel=1e-9)
    assert not same(branches(net, found.witness[None]), branches(net, x))


NETWORKS = {
    "vgg": cases.vgg,
    "wide": wide,
    "overlapping": lambda: nn.Sequential(cases.conv(), nn.ReLU(), nn.MaxPool2d(3, 2, 1), cases.conv(4), nn.ReLU()),
    "dilated": lambda: nn.Sequential(cases.conv(), nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True), nn.ReLU()),
    "ReLU6": lambda: nn.Sequential(cases.conv(outputs=8), nn.ReLU6(), cases.conv(8), nn.Hardtanh(-0.2, 0.3)),
    "leaky": lambda: nn.Sequential(cases.conv(), nn.LeakyReLU(0.1), cases.conv(4), nn.PReLU()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_within_the_radius_changes_a_branch(name):
    torch.manual_seed(1)
    net = NETWORKS[name]().double().eval()
    channels = net[0].in_channels
    x = image_of(channels, 11, 11, seed=2)
    found = uniqueness_of(net, str(len(net) - 1), x, whole=0)
    low, high = found.radius
    assert 0 < low <= high < low * 1.01
    here = branches(net, x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        assert same(branches(net, x + 0.999 * low * v / v.norm()), here)
    # straight at the nearest planes: that of the witness, and by ascent at what a ReLU or the output reads
    away = found.witness - x[0]
    assert same(branches(net, x + 0.999 * low * away / away.norm()), here)
    assert not same(branches(net, x + 1.001 * high * away / away.norm()), here)
    for depth, sign in itertools.product(range(1, len(net) + 1), (1, -1)):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((net[:depth](leaf.clone()) ** 2).sum(), leaf)
        assert same(branches(net, x + sign * 0.999 * low * gradient / gradient.norm()), here)
    # and there the network is the affine map that J is
    jacobian = torch.autograd.functional.jacobian(lambda u: net(u.clone()).flatten(), x).flatten(1)
    step = (0.999 * low * v / v.norm()).flatten()
    moved = (net(x + step.reshape(x.shape)) - net(x)).flatten()
    torch.testing.assert_close(moved, jacobian @ step, rtol=1e-6, atol=1e-12)


def test_the_smallest_singular_value_is_that_of_the_dense_jacobian_and_keeps_images_apart():
    net, x = wide(), image_of(2, 8, 8)
    found = uniqueness_of(net, "4", x)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v).flatten(), x).flatten(1)
    least = torch.linalg.svdvals(jacobian)[-1].item()
    assert least > 0.01
    assert found.sigma[0] <= least <= found.sigma[1] * (1 + 1e-12)
    assert found.sigma[1] - found.sigma[0] < 1e-6 * least
    assert found.proven
    assert found.unique is True
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = (v * found.radius[0] / v.norm() for v in torch.randn(2, *x.shape, generator=generator).double())
        assert (net(x + a) - net(x + b)).norm() >= 0.999999 * found.sigma[0] * (a - b).norm()
    # larger images are searched, which bounds it from above alone
    estimated = uniqueness_of(net, "4", x, whole=0)
    assert not estimated.proven
    assert estimated.sigma[0] == 0
    assert least * (1 - 1e-9) <= estimated.sigma[1] < 3 * least
    assert estimated.unique is None
    assert "no lower bound is known" in str(estimated)


def test_fewer_features_than_numbers_leave_images_with_the_same_features():
    net, x = cases.vgg().double().eval(), image_of(3, 16, 16)
    found = uniqueness_of(net, "8", x)
    assert (found.undetermined, found.unique) == (768 - 256, False)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v.clone()).flatten(), x).flatten(1)
    hidden = torch.linalg.svd(jacobian).Vh[-1].reshape(x.shape)
    other = x + 0.9 * found.radius[0] * hidden
    assert (net(other.clone()) - net(x.clone())).norm() < 1e-12 * net(x.clone()).norm()
    assert not torch.equal(other, x)
    assert "images in there have the same features" in str(found)


def test_smooth_activations_have_no_gates_to_flip():
    smooth = nn.Sequential(cases.conv(), nn.GELU(), cases.conv(4)).eval()
    found = unconv.uniqueness(smooth, "2", torch.rand(1, 3, 8, 8))
    assert found.radius is None
    assert "no gates to flip" in found.note
    assert "no gates to flip" in str(found)
    mixed = nn.Sequential(cases.conv(), nn.ReLU(), cases.conv(4), nn.Sigmoid()).eval()
    found = unconv.uniqueness(mixed, "3", torch.rand(1, 3, 8, 8))
    assert found.radius is None
    assert "no affine map" in found.note
    assert found.document()["radius"] is None


@pytest.mark.parametrize(
    "bend",
    [
        lambda h: h.clamp(-20, 20),
        lambda h: F.threshold(h, -20, 0),
        lambda h: (h + 30).abs(),
        lambda h: torch.log(h + 0.1),
        lambda h: h**2.2,
    ],
    ids=["clamp", "threshold", "abs", "log", "power"],
)
def test_bends_far_from_the_image_are_no_affine_map(bend):
    net = cases.Net(lambda m, x: m.act(bend(x)), act=nn.Identity()).double().eval()
    found = uniqueness_of(net, "act", image_of(3, 4, 4))
    assert found.radius is None
    assert found.unique is None


def test_rounding_leaves_nothing_to_know():
    net = cases.Net(lambda m, x: m.act(torch.round(8 * x)), act=nn.Identity()).double().eval()
    with pytest.raises(UnconvError, match="as behind rounding"):
        uniqueness_of(net, "act", image_of(3, 4, 4))


def test_an_affine_layer_is_one_map_everywhere():
    found = unconv.uniqueness(cases.vgg(), "0", torch.rand(1, 3, 8, 8))
    assert found.radius == (math.inf, math.inf)
    assert found.unique is True
    assert "anywhere" in str(found)
    assert found.document()["radius"] == [None, None]


def test_a_tie_leaves_no_radius():
    net = nn.Sequential(cases.conv(), nn.MaxPool2d(2)).double().eval()
    flat = torch.full((1, 3, 12, 12), 0.5, dtype=torch.float64)
    found = uniqueness_of(net, "1", flat, whole=0)
    assert found.radius[0] == 0
    assert found.radius[1] < 1e-3
    assert found.unique is None
    # every unit exactly at its kink, where it counts as off
    net = nn.Sequential(cases.conv(bias=False), nn.ReLU()).double().eval()
    found = uniqueness_of(net, "1", torch.zeros_like(flat), whole=0)
    assert found.radius[0] == 0
    assert found.radius[1] < 1e-3


@pytest.mark.parametrize("words", [{"probes": 2}, {"whole": -1}], ids=str)
def test_wrong_arguments(words: dict[str, Any]):
    with pytest.raises(UsageError, match="at least"):
        unconv.uniqueness(cases.vgg(), "8", torch.rand(1, 3, 8, 8), **words)


def test_what_cannot_be_said():
    with pytest.raises(UnconvError, match="regions of different sizes"):
        unconv.uniqueness(nn.Sequential(cases.conv(), nn.AdaptiveMaxPool2d(3)), "1", torch.rand(1, 3, 8, 8))
    with pytest.raises(UnconvError, match="no gradient"):
        unconv.uniqueness(cases.without_gradient("detach"), "b", torch.rand(1, 3, 16, 16))
