from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import regnet
from torchvision.ops import FrozenBatchNorm2d

import cases
from cases import Net, shake
from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import IMAGE, ConvBlocks
from unconv.errors import UnconvError
from unconv.graph import NOT_REACHED, trace
from unconv.tracing import capture, capture_inputs, list_layers

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def encoded(model: nn.Module, blocks: ConvBlocks, name: str, x: Tensor) -> Tensor:
    code = blocks.get(name).encode(capture_inputs(model, [name], x)[name])
    assert tuple(code.values.shape[1:]) == blocks.get(name).code_shape
    return code.values


def reasons(blocks: ConvBlocks) -> dict[str, str]:
    return {s.module: s.reason for s in blocks.skipped}


# encode is what the network computes: every network in float64, so the tolerance is that of rounding


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("conv", []),
        ("conv+relu+maxpool", [nn.ReLU(), nn.MaxPool2d(2)]),
        ("conv+bn+relu", [nn.BatchNorm2d(6), nn.ReLU(inplace=True)]),
        ("conv+bn+relu", [FrozenBatchNorm2d(6), nn.ReLU()]),
        ("conv+bn", [nn.SyncBatchNorm(6)]),
        ("conv+bn", [nn.BatchNorm2d(6, affine=False)]),
        ("conv+bn+silu+avgpool", [nn.BatchNorm2d(6, eps=0.1), nn.SiLU(inplace=True), nn.AvgPool2d(3, 2, 1)]),
        ("conv+avgpool", [nn.AvgPool2d((3, 2), 2, ceil_mode=True, count_include_pad=False)]),
        ("conv+relu+maxpool", [nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]),
        ("conv+relu+maxpool", [nn.ReLU(), nn.MaxPool2d(2, 3, 1, 2)]),
        ("conv+relu+maxpool", [nn.MaxPool2d(2), nn.ReLU(inplace=True)]),
        ("conv+bn+relu+maxpool", [nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.ReLU()]),
        ("conv+relu+maxpool", [nn.Dropout2d(), nn.ReLU(), nn.Identity(), nn.Dropout(inplace=True), nn.MaxPool2d(2)]),
    ],
)
def test_a_line_of_modules_is_one_block(kind, parts):
    torch.manual_seed(0)
    model = shake(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, dilation=2, groups=3), *parts)).double()
    x = torch.randn(2, 3, 23, 17, dtype=torch.float64)
    blocks = find_conv_blocks(model, x[:1])
    assert [s.kind for s in blocks] == [kind]
    assert blocks.skipped == ()
    torch.testing.assert_close(encoded(model, blocks, "0", x), model.eval()(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pool", [MAX, AVG])
def test_one_to_three_dimensions(dims, pool):
    torch.manual_seed(1)
    conv, bn = CONV[dims](2, 4, 3, padding="same"), NORM[dims](4)
    model = shake(nn.Sequential(conv, bn, nn.ReLU(True), pool[dims](2), CONV[dims](4, 3, 2))).double()
    x = torch.randn(3, 2, 6, 7, 8, dtype=torch.float64)[(..., *[0] * (3 - dims))]
    blocks = find_conv_blocks(model, x[:1])
    assert blocks.names == ("0", "4")
    assert [s.source for s in blocks] == [IMAGE, "0"]
    torch.testing.assert_close(encoded(model, blocks, "0", x), capture(model, ["3"], x)["3"])
    torch.testing.assert_close(encoded(model, blocks, "4", x), capture(model, ["4"], x)["4"])


ACTIVATIONS: list[tuple[str, nn.Module, object]] = [
    ("relu", nn.ReLU(inplace=True), torch.relu_),
    ("relu", nn.ReLU(), lambda h: F.relu(h, inplace=True)),
    ("relu", nn.ReLU(), lambda h: h.relu()),
    ("leaky_relu", nn.LeakyReLU(0.3, inplace=True), lambda h: F.leaky_relu(h, 0.3, True)),
    ("gelu", nn.GELU("tanh"), lambda h: F.gelu(h, approximate="tanh")),
    ("hardswish", nn.Hardswish(inplace=True), F.hardswish),
    ("hardtanh", nn.Hardtanh(-0.2, 0.4), lambda h: F.hardtanh(h, -0.2, 0.4)),
    ("sigmoid", nn.Sigmoid(), lambda h: h.sigmoid_()),
    ("softplus", nn.Softplus(2.0, 3.0), lambda h: F.softplus(h, 2.0, 3.0)),
]


@pytest.mark.parametrize(("name", "module", "function"), ACTIVATIONS)
def test_activations_as_module_and_as_function(name, module, function):
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for model in (nn.Sequential(conv, module), Net(lambda net, x: function(net.conv(x)), conv=conv)):
        blocks = find_conv_blocks(model, x[:1])
        (block,) = blocks
        assert block.kind == f"conv+{name}"
        torch.testing.assert_close(encoded(model, blocks, block.name, x), model(x))
        h = torch.linspace(-3, 3, 61)
        kept = h.clone()
        assert block.activation.nonnegative == bool((block.activate(h) >= 0).all())
        assert torch.equal(h, kept)


POOLINGS = [
    (nn.MaxPool2d(3, 2, 1), lambda h: F.max_pool2d(h, 3, 2, 1)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), lambda h: F.max_pool2d(h, kernel_size=3, stride=2, ceil_mode=True)),
    (nn.MaxPool2d(2), lambda h: F.max_pool2d(h, 2, return_indices=True)[0]),
    (nn.AvgPool2d(3, 2, 1, False, False), lambda h: F.avg_pool2d(h, 3, 2, 1, False, False)),
]


@pytest.mark.parametrize(("module", "function"), POOLINGS)
def test_poolings_as_function(module, function):
    torch.manual_seed(3)
    model = Net(lambda net, x: function(F.relu(net.conv(x))), conv=nn.Conv2d(3, 4, 3, dtype=torch.float64))
    x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
    blocks = find_conv_blocks(model, x[:1])
    twin = find_conv_blocks(nn.Sequential(model.conv, nn.ReLU(), module), x[:1])
    assert blocks.get("conv").pooling == twin.get("0").pooling
    torch.testing.assert_close(encoded(model, blocks, "conv", x), model(x))


def test_max_pooling_that_hands_out_its_switches():
    def forward(net, x):
        h, switches = net.pool(net.act(net.conv(x)))
        return net.unpool(h, switches)

    parts = {"conv": nn.Conv2d(3, 4, 3), "act": nn.ReLU(), "pool": nn.MaxPool2d(2, return_indices=True)}
    model = Net(forward, unpool=nn.MaxUnpool2d(2), **parts)
    x = torch.randn(2, 3, 10, 10)
    block = find_conv_blocks(model, x).get("conv")
    assert block.kind == "conv+relu+maxpool"
    with torch.no_grad():
        torch.testing.assert_close(block.encode(x).dense(), model(x))


TORCHVISION = {
    "resnet18": {
        "conv1": ("conv+bn+relu+maxpool", "maxpool"),
        "layer1.0.conv1": ("conv+bn+relu", "layer1.0.relu"),
        "layer1.0.conv2": ("conv+bn", "layer1.0.bn2"),
    },
    "mobilenet_v3_small": {
        "features.0.0": ("conv+bn+hardswish", "features.0.2"),
        "features.1.block.0.0": ("conv+bn+relu", "features.1.block.0.2"),
        "features.1.block.1.fc1": ("conv+relu", "features.1.block.1.activation"),
        "features.1.block.1.fc2": ("conv+hardsigmoid", "features.1.block.1.scale_activation"),
    },
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_blocks_of_real_networks_compute_what_the_network_does(name):
    torch.manual_seed(4)
    model = shake(torchvision.models.get_model(name, weights=None))
    x = torch.randn(2, 3, 64, 64)
    blocks = find_conv_blocks(model, x[:1])
    for block, (kind, last) in TORCHVISION[name].items():
        assert (blocks.get(block).kind, blocks.get(block).output) == (kind, last)
        torch.testing.assert_close(
            encoded(model, blocks, block, x), capture(model, [last], x)[last], rtol=1e-4, atol=1e-4
        )

    inputs = capture_inputs(model, blocks.names, x)
    assert tuple(inputs) == blocks.names
    torch.testing.assert_close(inputs[blocks.names[0]], x)
    chained = [s for s in blocks if s.source in inputs]
    assert chained
    for block in chained:
        assert block.source
        code = blocks.get(block.source).encode(inputs[block.source])
        torch.testing.assert_close(code.values, inputs[block.name], rtol=1e-4, atol=1e-4)
    assert all((inputs[s.name] >= 0).all() for s in blocks if s.nonnegative_input)


# where a block ends


@pytest.mark.parametrize(
    ("forward", "kind"),
    [
        (lambda n, x: n.act(n.bn(n.conv(x))), "conv+bn+relu"),
        (lambda n, x: (h := n.conv(x)) + n.act(n.bn(h)), "conv"),
        (lambda n, x: (h := n.bn(n.conv(x))) + n.act(h), "conv+bn"),
        (lambda n, x: n.bn(n.act(n.conv(x))), "conv+relu"),
        (lambda n, x: n.act(n.conv(x) + 1), "conv"),
        (lambda n, x: n.bn(n.bn(n.conv(x))), "conv+bn"),
        (lambda n, x: F.adaptive_avg_pool2d(n.act(n.conv(x)), 1), "conv+relu"),
        (lambda n, x: F.avg_pool2d(n.act(n.conv(x)), 2, divisor_override=3), "conv+relu"),
        (lambda n, x: torch.tanh(F.max_pool2d(n.conv(x), 2)), "conv+maxpool"),
        (lambda n, x: n.act(F.avg_pool2d(n.conv(x), 2)), "conv+avgpool"),
        (lambda n, x: n.act(F.max_pool2d(n.act(n.conv(x)), 2)), "conv+relu+maxpool"),
        (lambda n, x: F.max_pool2d(F.max_pool2d(n.conv(x), 2), 2), "conv+maxpool"),
        (lambda n, x: n.act(n.conv(x).flatten(1)), "conv"),
        (lambda n, x: (n.conv(x), n.act(n.conv(x))), "conv"),
    ],
)
def test_a_block_ends_where_something_else_follows_or_reads(forward, kind):
    model = Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), act=nn.ReLU())
    assert find_conv_blocks(model, torch.randn(1, 3, 12, 12)).get("conv").kind == kind


def test_sources():
    def forward(net, x):
        a = F.max_pool2d(net.act(net.a(x)), 2)
        b = net.b(F.dropout(a, 0.5, net.training))
        return net.c(torch.cat([b, a], 1)) + net.d(torch.cat([a, a], 1)) + net.e(b.contiguous().clone())

    convs = {name: nn.Conv2d(channels, 4, 1) for name, channels in [("a", 3), ("b", 4), ("c", 8), ("d", 8), ("e", 4)]}
    blocks = find_conv_blocks(Net(forward, act=nn.ReLU(inplace=True), **convs), torch.randn(1, 3, 8, 8))
    assert {s.name: s.source for s in blocks} == {"a": IMAGE, "b": "a", "c": None, "d": None, "e": "b"}
    assert {s.name for s in blocks if s.nonnegative_input} == {"b", "d"}


# what is left out


def standardised(conv, x):
    variance, mean = torch.var_mean(conv.weight, dim=(1, 2, 3), keepdim=True)
    weight = (conv.weight - mean) / (variance + 1e-6).sqrt()
    return F.conv2d(x, weight, conv.bias, stride=conv.stride, padding=conv.padding)


OWN = {
    "doubled": lambda conv, x: 2 * F.conv2d(x, conv.weight, conv.bias),
    "attentive": lambda conv, x: F.conv2d(x, conv.weight * x.mean().sigmoid(), conv.bias),
    "padding": lambda conv, x: F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias),
}


class Own(nn.Conv2d):
    """A convolution whose class computes something of its own."""

    def __init__(self, compute, *geometry, **options):
        super().__init__(*geometry, **options)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.ConvTranspose2d(4, 4, 3), "transposed convolution"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'; only zeros are supported"),
        (nn.Conv2d(4, 4, 2, padding="same"), "padding 'same' differs on the two sides of an even filter"),
        *((Own(compute, 4, 4, 3), "its class Own computes a convolution of its own kind") for compute in OWN.values()),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_of_another_kind_are_named(conv, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU())
    blocks = find_conv_blocks(model, torch.randn(1, 3, 6, 6))
    assert blocks.names == ("0",)
    assert reasons(blocks) == {"1": reason}


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding="valid"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, (2, 3), dilation=(2, 1), padding="same"),
        nn.Conv2d(3, 4, 3, padding_mode="circular"),
        Own(standardised, 3, 4, 3, stride=2, padding=1),
        weight_norm(nn.Conv2d(3, 4, 3)),
    ],
)
def test_convolutions_that_are_plain_after_all(conv):
    x = torch.randn(2, 3, 7, 8)
    block = find_conv_blocks(nn.Sequential(conv), x).get("0")
    torch.testing.assert_close(block.encode(x).values, conv(x).detach())


def test_convolutions_that_the_forward_pass_uses_in_another_way():
    def forward(net, x):
        h = net.twice(net.twice(x))
        h = F.conv2d(h, net.weighed.weight)
        return net.inner(net.one(h[0])[None])

    inner = Net(lambda net, x: F.conv_transpose2d(x, net.kernel.weight), kernel=nn.Linear(3, 3, bias=False))
    inner.kernel.weight = nn.Parameter(torch.randn(3, 3, 2, 2))
    parts = {name: nn.Conv2d(3, 3, 1) for name in ("twice", "weighed", "one", "idle")}
    blocks = find_conv_blocks(Net(forward, inner=inner, **parts), torch.randn(1, 3, 6, 6))
    assert blocks.names == ("twice",)
    assert reasons(blocks) == {
        "twice": "called several times; the conv block is the first call",
        "the network itself": "calls conv2d as a function; only nn.Conv modules are conv blocks",
        "one": "called without a batch axis",
        "inner": "calls conv_transpose2d as a function; only nn.Conv modules are conv blocks",
        "weighed": "never called in the forward pass",
        "idle": "never called in the forward pass",
    }


def test_a_batch_norm_without_statistics_ends_the_block_and_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    blocks = find_conv_blocks(model, torch.randn(1, 3, 6, 6))
    assert blocks.get("0").kind == "conv"
    assert reasons(blocks) == {"1": "batch norm without running statistics cannot be folded; 0 ends there"}


def test_blocks_up_to_where_the_forward_pass_fails():
    model = torchvision.models.alexnet(weights=None)
    blocks = find_conv_blocks(model, torch.randn(1, 3, 20, 20))
    assert [(s.name, s.kind) for s in blocks] == [("features.0", "conv+relu+maxpool"), ("features.3", "conv+relu")]
    skipped = reasons(blocks)
    assert set(skipped) == {"features.6", "features.8", "features.10"}
    assert all(r.startswith("not reached, the forward pass stopped: ") and "\n" not in r for r in skipped.values())
    layers = list_layers(model, torch.randn(1, 3, 20, 20))
    assert (layers.names[-1], layers.skipped[0].module) == ("features.4", "features.5")
    assert layers.skipped[0].reason.startswith("not reached, the forward pass stopped: ")


def test_the_first_convolution_does_not_fit():
    with pytest.raises(UnconvError, match=r"cannot take an input of shape \(1, 3, 2, 2\): .*[Kk]ernel size") as caught:
        find_conv_blocks(nn.Sequential(nn.Conv2d(3, 4, 7)), torch.zeros(1, 3, 2, 2))
    assert "\n" not in str(caught.value)


# every block is checked against the network's own output


@pytest.mark.parametrize(("where", "kind"), list(zip(cases.HOOKS, cases.HOOKED_KINDS, strict=True)))
def test_a_block_ends_where_it_is_changed_from_outside(where, kind):
    model, plain = cases.hooked(where).eval(), cases.hooked(None).eval()
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = find_conv_blocks(model, x)
    assert (blocks.get("0").kind, blocks.names) == (kind, ("0", "4"))
    parts = {"conv": plain[0], "bn": plain[1], "relu": plain[2], "tanh": nn.Tanh(), "maxpool": plain[3]}
    expected = 3 * x  # brighter than what the blocks were found with: no clamp of a hook's may be missed
    for part in kind.split("+"):
        expected = parts[part](expected)
    torch.testing.assert_close(blocks.get("0").encode(3 * x).values, expected)
    same = torch.equal(expected, capture_inputs(model, ["4"], 3 * x)["4"])
    assert blocks.get("4").source == ("0" if same else None)
    assert blocks.names == find_conv_blocks(model, torch.zeros(1, 3, 8, 8)).names


def test_a_chain_that_is_changed_behind_its_back_is_no_chain():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[0].register_forward_hook(lambda module, args, y: y.data.neg_().numel() and None)
    first, second, third = find_conv_blocks(model, torch.rand(1, 3, 8, 8))
    assert [first.source, second.source, third.source] == [IMAGE, None, "1"]
    assert not second.nonnegative_input


def test_a_batch_norm_in_training_mode_and_a_replaced_forward():
    blocks = find_conv_blocks(cases.norm_in_training_mode(), torch.rand(1, 3, 8, 8))
    assert "training mode changes them" in reasons(blocks)["conv"]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    plain, doubled = model[0].forward, model[1].forward
    model[0].forward = lambda x: plain(x)
    model[1].forward = lambda x: doubled(2 * x)
    blocks = find_conv_blocks(model, torch.rand(1, 3, 8, 8))
    assert blocks.names == ("0",)
    assert reasons(blocks) == {"1": "its forward was replaced by one that is no plain convolution of its input"}


def test_filters_that_depend_on_the_image_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    weight = model[0].weight.detach().clone()

    def scale(module, args):
        module.weight.data = weight * args[0].mean()

    model[0].register_forward_pre_hook(scale)
    assert find_conv_blocks(model, torch.rand(1, 3, 8, 8)).names == ("1",)


@pytest.mark.parametrize("norm", cases.STALE)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_filters_that_a_hook_computes_are_those_of_the_forward_pass(norm):
    model = cases.stale(norm).eval()
    x = torch.rand(2, 3, 8, 8)
    before = model[0].weight.detach().clone()
    blocks = find_conv_blocks(model, x)
    assert torch.equal(model[0].weight, before)
    with torch.no_grad():
        torch.testing.assert_close(blocks.get("0").encode(x).values, model[:2](x))
        assert not torch.allclose(blocks.get("0").operator.weight, before)


def test_paths_that_depend_on_the_image():
    model = cases.branching()
    bright, dark = (find_conv_blocks(model, torch.full((1, 3, 8, 8), value)) for value in (1.0, 0.1))
    assert trace(model, torch.full((1, 3, 8, 8), 0.9)).path == bright.path
    assert [block.source for block in bright] == [IMAGE, "a", "b"]
    assert [block.source for block in dark] == [IMAGE, "a"]
    assert reasons(dark) == {"b": NOT_REACHED}
    assert bright.path != dark.path
    assert bright.branches == dark.branches == ("",)


@pytest.mark.parametrize(
    ("model", "last", "tolerance"),
    [
        (cases.autocast(), {"a": None, "b": "output"}, 0.02),
        (cases.random(), {"a": "a", "c": "c"}, 1e-5),
        (cases.checkpointed(), {"a": "a", "b.0": "b"}, 1e-5),
        (cases.without_gradient("inference_mode"), {"a": "a", "b": "b"}, 1e-5),
        (cases.stores_activations(), {"a": "act", "b": "b"}, 1e-5),
        (cases.returns_nothing_from_train(), {"conv": "conv"}, 1e-5),
    ],
)
def test_networks_that_do_something_unusual_in_their_forward_pass(model, last, tolerance):
    model(x := torch.rand(2, 3, 8, 8))
    blocks = find_conv_blocks(model, x)
    assert blocks.names == tuple(last)
    assert blocks.skipped == ()
    for block in blocks:
        if name := last[block.name]:
            torch.manual_seed(0)
            inputs = capture_inputs(model, [block.name], x)[block.name]
            torch.manual_seed(0)
            expected = capture(model, [name], x)[name]
            assert inputs.dtype == expected.dtype == torch.float32
            difference = (block.encode(inputs).values - expected).abs().max() / expected.abs().max()
            assert difference < tolerance


# every classification network of torchvision, on the meta device: shapes without values, so the large ones cost nothing


@pytest.fixture
def block_parameters_off_meta(monkeypatch):
    """RegNets compute their widths with tensors, which needs values."""
    compute = regnet.BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **options):
        with torch.device("cpu"):
            return compute(cls, *args, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(on_cpu))


NAMES = torchvision.models.list_models(module=torchvision.models)
# of each family the first one; the others hold the same parts, and are slow together
FAMILIES = {re.match("[a-z]+", name)[0]: name for name in reversed(NAMES)}  # pyright: ignore


@pytest.mark.parametrize(
    "name", [name if name in FAMILIES.values() else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
@pytest.mark.usefixtures("block_parameters_off_meta")
def test_every_convolution_of_torchvision_is_a_block_or_named(name):
    size = 299 if name == "inception_v3" else 224
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
        image = torch.empty(1, 3, size, size)
    blocks = find_conv_blocks(model, image)
    convolutions = {path for path, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    auxiliary = {path for path in convolutions if path.startswith(("aux", "AuxLogits"))}
    assert set(blocks.names) == convolutions - auxiliary
    left_out = reasons(blocks)
    assert left_out == dict.fromkeys(auxiliary, "never called in the forward pass")
    assert bool(auxiliary) == (name in {"googlenet", "inception_v3"})
    assert blocks.blocks[0].source == IMAGE
    for block in blocks:
        if block.source not in {None, IMAGE}:
            assert blocks.get(block.source).code_shape == block.input_shape
