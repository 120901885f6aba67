from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import cases
from cases import Net, conv
from unconv.block_extraction import find_conv_blocks
from unconv.cifar_vgg import CifarVGG
from unconv.errors import UnconvError, UsageError
from unconv.graph import trace
from unconv.tracing import capture, capture_inputs, list_layers

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# which modules are layers


def test_every_module_is_a_layer_with_the_shape_of_its_features():
    layers = list_layers(torchvision.models.resnet18(weights=None), torch.rand(1, 3, 64, 64))
    assert layers.skipped == ()
    assert layers.branches == ()
    block, pooled = layers.get("layer2"), layers.get("avgpool")
    assert (block.kind, block.input_shape, block.shape) == ("Sequential", (64, 16, 16), (128, 8, 8))
    assert (pooled.shape, layers.get("fc").shape, layers.get("output").shape) == ((512, 1, 1), (1000,), (1000,))
    assert layers.names.index("layer1.0.conv1") < layers.names.index("layer1.0") < layers.names.index("layer1")
    with pytest.raises(UsageError, match=r"no layer 'layer2\.relu'; use one such as layer2\.0\.relu, layer2\.1\.relu$"):
        layers.get("layer2.relu")
    # conv1 + bn1 + relu + maxpool is a conv block, named by its first and its last part
    assert [layers.get(name).block for name in ("conv1", "bn1", "maxpool", "layer1")] == [True, False, True, False]


def test_tuples_dicts_and_what_is_no_layer():
    model = cases.outputs_of_many_kinds()
    layers = list_layers(model, X)
    named = ["named['a']", "windows", "output['a']"]
    assert list(layers.names) == ["conv", "pair[0]", "pair[1][0]", *named]
    assert layers.get("windows").shape == (2, 4, 4, 8)
    assert {s.module: s.reason for s in layers.skipped} == {
        "number": "its output has no batch axis",
        "constant": "its output does not depend on the image",
        "text": "its output is of type str and holds no tensor",
        "transposed": "the batch is axis 1 of its output, not axis 0",
        "mixed": "its output for one image depends on the other images of the batch",
        "named['b']": "its output is int64, not floating-point",
        "output['b']": "its output is int64, not floating-point",
        "idle": "never called in the forward pass",
    }
    assert layers.ends() == layers.names  # the parts of a tuple stand for the module that gives it
    for name, message in {
        "pair": r"no layer 'pair'; use one such as pair\[0\], pair\[1\]\[0\]",
        "idle.0": "'idle.0' is no layer: never called in the forward pass",
    }.items():
        with pytest.raises(UsageError, match=message):
            layers.get(name)
    features = capture(model, [*named, "pair[1][0]"], X)
    h = model.conv(X).detach()
    torch.testing.assert_close(features["pair[1][0]"], 2 * h)
    torch.testing.assert_close(features["named['a']"], h.mean((2, 3)))  # its first call
    torch.testing.assert_close(features["output['a']"], 2 * h.mean((2, 3)))
    # the upper and the lower half of each image
    torch.testing.assert_close(features["windows"], torch.stack([h[:, :, :4], h[:, :, 4:]], 1))


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet18", "relu layer1 layer2 layer3 layer4 avgpool fc"),
        ("vgg11", "features.1 features.4 features.9 features.14 features.19 features.20 avgpool classifier"),
        ("swin_t", "features.1 features.3 features.5 norm permute avgpool head"),
    ],
)
def test_ends_are_spread_over_the_depth(name, ends):
    model = torchvision.models.get_model(name, weights=None)
    assert list_layers(model, torch.rand(1, 3, 64, 64)).ends() == tuple(ends.split())


def test_ends_of_small_and_of_uniform_networks():
    assert list_layers(nn.Sequential(conv(), nn.ReLU()), X).ends() == ("0", "1")
    names = list_layers(CifarVGG(), torch.rand(1, 3, 64, 64)).ends()
    assert names == ("features.5", "features.9", "features.12", "features.19", "features.20", "classifier")
    uniform = nn.Sequential(*[nn.Sequential(conv(3, 3), nn.ReLU()) for _ in range(20)])
    ends = list_layers(uniform, X).ends()
    assert len(ends) == 6
    assert ends[-1] == "19"
    listed = Net(lambda net, x: net.blocks[1](net.blocks[0](x)), blocks=nn.ModuleList([conv(3, 3), conv(3, 3)]))
    assert list_layers(listed, X).ends() == ("blocks.0", "blocks.1")


# what a network may do in its forward pass


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "detach", "data"])
def test_layers_that_the_gradient_does_not_reach(how):
    layers = list_layers(cases.without_gradient(how), X)
    assert {layer.name: layer.gradient for layer in layers} == {"a": True, "b": False, "output": False}


def test_random_layers_are_left_out_and_called_so():
    layers = list_layers(cases.random().eval(), X)
    assert layers.names == ("a",)
    reasons = {s.module: s.reason for s in layers.skipped}
    assert set(reasons) == {"c", "output"}
    assert all("forward passes of one image differ" in reason for reason in reasons.values())


def test_features_whose_shape_depends_on_the_image():
    model = Net(lambda net, x: net.a(x[..., : 4 + int(4 * x.mean()), :]), a=conv(3, 8))
    model.register_forward_pre_hook(lambda module, args: (args[0] / args[0].amax((1, 2, 3), keepdim=True),))
    layers = list_layers(model, torch.cat([X[:1] ** 4, X[1:]]))
    assert {s.module: s.reason for s in layers.skipped} == dict.fromkeys(
        ("a", "output"), "its shape depends on the image's values"
    )


def test_a_mask_that_picks_images_is_a_branch():
    def forward(net, x):
        h = net.a(x)
        bright = x.mean((1, 2, 3)) > 0.5
        h[bright] = net.b(h[bright])
        return net.c(h)

    model = Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8))
    layers = list_layers(model, X / 2)
    assert layers.branches == ("",)
    assert trace(model, X / 4).path == layers.path != trace(model, X * 2).path
    assert list_layers(Net(lambda net, x: net.a(x.float()).double(), a=conv()), X).branches == ()


@pytest.mark.parametrize("handed", ["rows of a mask", "image by image"])
def test_experts_that_an_image_does_not_reach(handed):
    def forward(net, x):
        h, chosen = net.stem(x), (x.mean((1, 2, 3)) > 0.5).long()
        if handed == "image by image":
            return torch.cat([net.experts[int(i)](y[None]) for i, y in zip(chosen, h)])
        y = torch.zeros_like(h)
        for i, expert in enumerate(net.experts):
            y[chosen == i] = expert(h[chosen == i])
        return y

    model = Net(forward, stem=conv(), experts=nn.ModuleList([conv(4, 4), conv(4, 4)]))
    layers = list_layers(model, X / 4)
    assert layers.names == ("stem", "experts.0", "output")
    with pytest.raises(UsageError, match="this image does not reach it: values decide what runs"):
        layers.get("experts.1")
    assert find_conv_blocks(model, X / 4).names == ("stem", "experts.0")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_seen_once(reentrant):
    layers = list_layers(cases.checkpointed(reentrant), X)
    assert layers.names == ("a", "b.0", "b.1", "b", "output")
    assert all(layer.gradient for layer in layers)


# capture


def test_captured_inputs_are_copies_that_nothing_in_place_changes():
    def forward(net, x):
        h = net.bn(net.a(net.act(x)))
        y = net.b(h)
        h.mul_(0)
        return net.c(net.act(y))

    torch.manual_seed(5)
    convs = {"a": conv(3, 4), "b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(4, 4, 1)}
    model = cases.shake(Net(forward, act=nn.ReLU(inplace=True), bn=nn.BatchNorm2d(4), **convs)).train()
    kept, statistics = X.clone(), model.bn.running_mean.clone()
    inputs = capture_inputs(model, ["c", "b", "a"], X - 0.5)
    outputs = capture(model, ["bn", "b"], X - 0.5)

    assert list(inputs) == ["c", "b", "a"]
    assert torch.equal(X, kept)
    assert model.bn.training
    assert torch.equal(model.bn.running_mean, statistics)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    torch.testing.assert_close(inputs["a"], (X - 0.5).relu())
    assert torch.equal(inputs["b"], outputs["bn"])
    assert torch.equal(inputs["c"], outputs["b"].relu())


def test_capture_takes_the_first_call_and_goes_no_further_than_needed():
    def forward(net, x):
        h = net.conv(net.conv(x) + 1)
        net.last(input=h)
        raise AssertionError("went on")

    model = Net(forward, conv=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 3, 1))
    inputs = capture_inputs(model, ["conv", "last"], X)
    torch.testing.assert_close(inputs["conv"], X)
    torch.testing.assert_close(inputs["last"], model.conv(model.conv(X) + 1).detach())
    torch.testing.assert_close(capture(model, ["conv"], X)["conv"], model.conv(X).detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_captured_values_that_are_not_finite(bad):
    x = torch.randn(4, 5, 3, 4, 4)
    x[2, 1, 0, 0] = bad
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    with pytest.raises(UnconvError, match="the input of 1 has NaN or infinite values for image 2 of the batch"):
        capture_inputs(model, ["1"], x[:, 1])
    with pytest.raises(UnconvError, match="layer 0 has NaN or infinite values for image 2 of the batch"):
        capture(model, ["0"], x[:, 1])
    frames = Net(lambda net, x: net.conv(x.flatten(0, 1)), conv=nn.Conv2d(3, 3, 1))
    with pytest.raises(UnconvError, match="image 2 of the batch"):
        capture_inputs(frames, ["conv"], x)


def test_capture_says_what_is_wrong():
    model = Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 3, 5), b=nn.Conv2d(3, 3, 1))
    with pytest.raises(UsageError, match="the network has no layer 'c'"):
        capture(model, ["c"], X)
    with pytest.raises(UnconvError, match=r"does not reach b on an input of shape \(2, 3, 8, 8\)"):
        capture_inputs(model, ["b"], X)
    with pytest.raises(UnconvError, match=r"cannot take an input of shape \(1, 3, 2, 2\)"):
        capture(model, ["a", "b"], torch.randn(1, 3, 2, 2))
    with pytest.raises(UsageError, match=r"no layer 'pair'; the places in its output are \[0\], \[1\]\[0\]"):
        capture(cases.outputs_of_many_kinds(), ["pair"], X)
    with pytest.raises(UnconvError, match=r"layer number has shape \(\) for 2 images: no batch axis"):
        capture(cases.outputs_of_many_kinds(), ["number"], X)
