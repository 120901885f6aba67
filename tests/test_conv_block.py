from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import regnet
from torchvision.ops import FrozenBatchNorm2d

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import IMAGE, ConvBlocks
from unconv.errors import UnconvError, UsageError
from unconv.sparsity import AveragePool, Window
from unconv.tracing import capture_inputs as capture

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Net(nn.Module):
    """A small network whose forward pass is given as a function of the module and its input."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor):
        return self.run(self, x)


class Caught(Exception):
    pass


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and weights that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d):
            for name, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    low = 0.5 if name in {"running_var", "weight"} else -0.5
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model


def after(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What the module at a path gives when it is first called: the network's own tensor."""

    def hook(_, __, output):
        error = Caught()
        error.tensor = output.clone()
        raise error

    handle = model.eval().get_submodule(path).register_forward_hook(hook)
    with torch.no_grad(), pytest.raises(Caught) as caught:
        model(x.clone())
    handle.remove()
    return caught.value.tensor


def encoded(model: nn.Module, stages: ConvBlocks, name: str, x: Tensor) -> Tensor:
    code = stages.get(name).encode(capture(model, [name], x)[name])
    assert tuple(code.values.shape[1:]) == stages.get(name).code_shape
    return code.values


def reasons(stages: ConvBlocks) -> dict[str, str]:
    return {s.module: s.reason for s in stages.skipped}


def summary(stages: ConvBlocks) -> list[tuple]:
    return [(s.name, s.kind, s.input_shape, s.code_shape, s.source, s.nonnegative_input, s.pooling) for s in stages]


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
def test_a_line_of_modules_is_one_stage(kind, parts):
    torch.manual_seed(0)
    model = shake(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, dilation=2, groups=3), *parts)).double()
    x = torch.randn(2, 3, 23, 17, dtype=torch.float64)
    stages = find_conv_blocks(model, x[:1])
    assert [s.kind for s in stages] == [kind]
    assert stages.skipped == ()
    torch.testing.assert_close(encoded(model, stages, "0", x), model.eval()(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("pool", [MAX, AVG])
def test_one_to_three_dimensions(dims, pool):
    torch.manual_seed(1)
    conv, bn = CONV[dims](2, 4, 3, padding="same"), NORM[dims](4)
    model = shake(nn.Sequential(conv, bn, nn.ReLU(True), pool[dims](2), CONV[dims](4, 3, 2))).double()
    x = torch.randn(3, 2, 6, 7, 8, dtype=torch.float64)[(..., *[0] * (3 - dims))]
    stages = find_conv_blocks(model, x[:1])
    assert stages.names == ("0", "4")
    assert [s.source for s in stages] == [IMAGE, "0"]
    torch.testing.assert_close(encoded(model, stages, "0", x), after(model, "3", x))
    torch.testing.assert_close(encoded(model, stages, "4", x), after(model, "4", x))


ACTIVATIONS: list[tuple[str, nn.Module, object]] = [
    ("relu", nn.ReLU(inplace=True), torch.relu_),
    ("relu", nn.ReLU(), lambda h: F.relu(h, inplace=True)),
    ("relu", nn.ReLU(), lambda h: h.relu()),
    ("relu6", nn.ReLU6(inplace=True), F.relu6),
    ("leaky_relu", nn.LeakyReLU(0.3, inplace=True), lambda h: F.leaky_relu(h, 0.3, True)),
    ("elu", nn.ELU(0.7), lambda h: F.elu(h, alpha=0.7)),
    ("celu", nn.CELU(0.7), lambda h: torch.celu(h, 0.7)),
    ("selu", nn.SELU(), F.selu),
    ("gelu", nn.GELU("tanh"), lambda h: F.gelu(h, approximate="tanh")),
    ("silu", nn.SiLU(inplace=True), F.silu),
    ("mish", nn.Mish(), F.mish),
    ("hardswish", nn.Hardswish(inplace=True), F.hardswish),
    ("hardsigmoid", nn.Hardsigmoid(), F.hardsigmoid),
    ("hardtanh", nn.Hardtanh(-0.2, 0.4), lambda h: F.hardtanh(h, -0.2, 0.4)),
    ("sigmoid", nn.Sigmoid(), lambda h: h.sigmoid_()),
    ("tanh", nn.Tanh(), torch.tanh),
    ("softplus", nn.Softplus(2.0, 3.0), lambda h: F.softplus(h, 2.0, 3.0)),
    ("softsign", nn.Softsign(), F.softsign),
]


@pytest.mark.parametrize(("name", "module", "function"), ACTIVATIONS)
def test_activations_as_module_and_as_function(name, module, function):
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for model in (nn.Sequential(conv, module), Net(lambda net, x: function(net.conv(x)), conv=conv)):
        stages = find_conv_blocks(model, x[:1])
        (stage,) = stages
        assert stage.kind == f"conv+{name}"
        torch.testing.assert_close(encoded(model, stages, stage.name, x), model(x))
        h = torch.linspace(-3, 3, 61)
        kept = h.clone()
        assert stage.activation.nonnegative == bool((stage.activate(h) >= 0).all())
        assert torch.equal(h, kept)


def test_prelu_follows_the_stage_to_another_type():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4, init=0.3))
    x = torch.randn(2, 3, 6, 6)
    stage = find_conv_blocks(model, x).get("0")
    assert stage.kind == "conv+prelu"
    double = stage.to(torch.float64)
    torch.testing.assert_close(double.encode(x.double()).values, model.double()(x.double()).detach())
    assert double.bias is not None
    assert double.bias.dtype == torch.float64


POOLINGS = [
    (nn.MaxPool2d(3, 2, 1), lambda h: F.max_pool2d(h, 3, 2, 1)),
    (nn.MaxPool2d(2), lambda h: torch.max_pool2d(h, (2, 2))),
    (nn.MaxPool2d(3, 2, ceil_mode=True), lambda h: F.max_pool2d(h, kernel_size=3, stride=2, ceil_mode=True)),
    (nn.MaxPool2d(2), lambda h: F.max_pool2d(h, 2, return_indices=True)[0]),
    (nn.AvgPool2d(2), lambda h: F.avg_pool2d(h, 2)),
    (nn.AvgPool2d(3, 2, 1, False, False), lambda h: F.avg_pool2d(h, 3, 2, 1, False, False)),
]


@pytest.mark.parametrize(("module", "function"), POOLINGS)
def test_poolings_as_function(module, function):
    torch.manual_seed(3)
    model = Net(lambda net, x: function(F.relu(net.conv(x))), conv=nn.Conv2d(3, 4, 3, dtype=torch.float64))
    x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
    stages = find_conv_blocks(model, x[:1])
    twin = find_conv_blocks(nn.Sequential(model.conv, nn.ReLU(), module), x[:1])
    assert stages.get("conv").pooling == twin.get("0").pooling
    torch.testing.assert_close(encoded(model, stages, "conv", x), model(x))


def test_max_pooling_that_hands_out_its_switches():
    def forward(net, x):
        h, switches = net.pool(net.act(net.conv(x)))
        return net.unpool(h, switches)

    parts = {"conv": nn.Conv2d(3, 4, 3), "act": nn.ReLU(), "pool": nn.MaxPool2d(2, return_indices=True)}
    model = Net(forward, unpool=nn.MaxUnpool2d(2), **parts)
    x = torch.randn(2, 3, 10, 10)
    stage = find_conv_blocks(model, x).get("conv")
    assert stage.kind == "conv+relu+maxpool"
    with torch.no_grad():
        torch.testing.assert_close(stage.encode(x).dense(), model(x))


TORCHVISION = {
    "alexnet": {
        "features.0": ("conv+relu+maxpool", "features.2"),
        "features.6": ("conv+relu", "features.7"),
        "features.10": ("conv+relu+maxpool", "features.12"),
    },
    "resnet18": {
        "conv1": ("conv+bn+relu+maxpool", "maxpool"),
        "layer1.0.conv1": ("conv+bn+relu", "layer1.0.relu"),
        "layer1.0.conv2": ("conv+bn", "layer1.0.bn2"),
        "layer2.0.downsample.0": ("conv+bn", "layer2.0.downsample.1"),
    },
    "mobilenet_v3_small": {
        "features.0.0": ("conv+bn+hardswish", "features.0.2"),
        "features.1.block.0.0": ("conv+bn+relu", "features.1.block.0.2"),
        "features.1.block.1.fc1": ("conv+relu", "features.1.block.1.activation"),
        "features.1.block.1.fc2": ("conv+hardsigmoid", "features.1.block.1.scale_activation"),
        "features.4.block.1.0": ("conv+bn+hardswish", "features.4.block.1.2"),
        "features.4.block.3.0": ("conv+bn", "features.4.block.3.1"),
    },
    "densenet121": {
        "features.conv0": ("conv+bn+relu+maxpool", "features.pool0"),
        "features.denseblock1.denselayer1.conv1": ("conv+bn+relu", "features.denseblock1.denselayer1.relu2"),
        "features.denseblock1.denselayer2.conv2": ("conv", "features.denseblock1.denselayer2.conv2"),
        "features.transition1.conv": ("conv+avgpool", "features.transition1.pool"),
    },
    "squeezenet1_0": {
        "features.0": ("conv+relu+maxpool", "features.2"),
        "features.3.expand3x3": ("conv+relu", "features.3.expand3x3_activation"),
    },
    "googlenet": {
        "conv1.conv": ("conv+bn+relu+maxpool", "maxpool1"),
        "conv3.conv": ("conv+bn+relu+maxpool", "maxpool2"),
        "inception3a.branch2.0.conv": ("conv+bn+relu", "inception3a.branch2.0"),
    },
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_stages_of_real_networks_compute_what_the_network_does(name):
    torch.manual_seed(4)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = shake(torchvision.models.get_model(name, weights=None, **options))
    x = torch.randn(2, 3, 64, 64)
    stages = find_conv_blocks(model, x[:1])
    for stage, (kind, last) in TORCHVISION[name].items():
        assert stages.get(stage).kind == kind
        torch.testing.assert_close(encoded(model, stages, stage, x), after(model, last, x), rtol=1e-4, atol=1e-4)

    inputs = capture(model, stages.names, x)
    assert tuple(inputs) == stages.names
    torch.testing.assert_close(inputs[stages.names[0]], x)
    chained = [s for s in stages if s.source in inputs]
    assert chained
    for stage in chained:
        assert stage.source
        code = stages.get(stage.source).encode(inputs[stage.source])
        torch.testing.assert_close(code.values, inputs[stage.name], rtol=1e-4, atol=1e-4)
    assert all((inputs[s.name] >= 0).all() for s in stages if s.nonnegative_input)


class Wavering(nn.Module):
    """A residual network of which the path depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.act(self.bn1(self.conv1(x))), 2)
        if h.mean() > 1e6:
            h = h * 2
        h = self.act(h + self.conv2(h))
        return self.conv3(h)


def test_a_network_that_cannot_be_traced_symbolically():
    model = shake(Wavering())
    x = torch.randn(2, 3, 12, 12)
    stages = find_conv_blocks(model, x[:1])
    assert [(s.name, s.kind, s.source, s.nonnegative_input) for s in stages] == [
        ("conv1", "conv+bn+relu+maxpool", IMAGE, False),
        ("conv2", "conv", "conv1", True),
        ("conv3", "conv", None, True),
    ]
    inputs = capture(model, stages.names, x)
    torch.testing.assert_close(stages.get("conv1").encode(inputs["conv1"]).values, inputs["conv2"])


# where a stage ends


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
def test_a_stage_ends_where_something_else_follows_or_reads(forward, kind):
    model = Net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), act=nn.ReLU())
    assert find_conv_blocks(model, torch.randn(1, 3, 12, 12)).get("conv").kind == kind


def test_sources():
    def forward(net, x):
        a = F.max_pool2d(net.act(net.a(x)), 2)
        b = net.b(F.dropout(a, 0.5, net.training))
        return net.c(torch.cat([b, a], 1)) + net.d(torch.cat([a, a], 1)) + net.e(b.contiguous().clone())

    convs = {name: nn.Conv2d(channels, 4, 1) for name, channels in [("a", 3), ("b", 4), ("c", 8), ("d", 8), ("e", 4)]}
    stages = find_conv_blocks(Net(forward, act=nn.ReLU(inplace=True), **convs), torch.randn(1, 3, 8, 8))
    assert {s.name: s.source for s in stages} == {"a": IMAGE, "b": "a", "c": None, "d": None, "e": "b"}
    assert {s.name for s in stages if s.nonnegative_input} == {"b", "d"}


def test_the_output_of_a_stage_that_pools_before_its_activation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    first, second = find_conv_blocks(model, torch.randn(1, 3, 8, 8))
    assert first.kind == "conv+relu+maxpool"
    assert (second.source, second.nonnegative_input) == ("0", True)


# what is left out


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-6).sqrt()
        return F.conv2d(x, weight, self.bias, stride=self.stride, padding=self.padding)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Attentive(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias)


class Padding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.ConvTranspose2d(4, 4, 3), "transposed convolution"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'; only zeros are supported"),
        (nn.Conv2d(4, 4, 2, padding="same"), "padding 'same' differs on the two sides of an even filter"),
        (Doubled(4, 4, 3), "its class Doubled computes a convolution of its own kind"),
        (Attentive(4, 4, 3), "its class Attentive computes a convolution of its own kind"),
        (Padding(4, 4, 3), "its class Padding computes a convolution of its own kind"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_of_another_kind_are_named(conv, reason):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU())
    stages = find_conv_blocks(model, torch.randn(1, 3, 6, 6))
    assert stages.names == ("0",)
    assert reasons(stages) == {"1": reason}


def test_standardised_filters_are_taken_as_they_are_used():
    torch.manual_seed(0)
    conv = Standardised(3, 6, 3, stride=2, padding=1)
    model = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)).eval()
    model[1].running_mean.normal_()
    x = torch.randn(2, 3, 12, 12)
    (stage,) = find_conv_blocks(model, x).blocks
    assert stage.operator.stride == (2, 2)
    with torch.no_grad():
        torch.testing.assert_close(stage.encode(x).values, model(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding="valid"),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, (2, 3), dilation=(2, 1), padding="same"),
        nn.Conv2d(3, 4, 3, padding_mode="circular"),
        weight_norm(nn.Conv2d(3, 4, 3)),
    ],
)
def test_convolutions_that_are_plain_after_all(conv):
    x = torch.randn(2, 3, 7, 8)
    stage = find_conv_blocks(nn.Sequential(conv), x).get("0")
    torch.testing.assert_close(stage.encode(x).values, conv(x).detach())


def test_convolutions_that_the_forward_pass_uses_in_another_way():
    def forward(net, x):
        h = net.twice(net.twice(x))
        h = F.conv2d(h, net.weighed.weight)
        return net.inner(net.one(h[0])[None])

    inner = Net(lambda net, x: F.conv_transpose2d(x, net.kernel.weight), kernel=nn.Linear(3, 3, bias=False))
    inner.kernel.weight = nn.Parameter(torch.randn(3, 3, 2, 2))
    parts = {name: nn.Conv2d(3, 3, 1) for name in ("twice", "weighed", "one", "idle")}
    stages = find_conv_blocks(Net(forward, inner=inner, **parts), torch.randn(1, 3, 6, 6))
    assert stages.names == ("twice",)
    assert reasons(stages) == {
        "twice": "called several times; the conv block is the first call",
        "the network itself": "calls conv2d as a function; only nn.Conv modules are conv blocks",
        "one": "called without a batch axis",
        "inner": "calls conv_transpose2d as a function; only nn.Conv modules are conv blocks",
        "weighed": "never called in the forward pass",
        "idle": "never called in the forward pass",
    }


def test_complex_lazy_and_quantised_convolutions_are_named():
    def forward(net, x):
        return net.complex(net.plain(x).to(torch.complex64)).abs()

    quantised = nn.Module()
    quantised.__class__ = type("Conv2d", (nn.Module,), {"__module__": "torch.ao.nn.quantized.modules.conv"})
    complex_conv = nn.Conv2d(4, 4, 1, dtype=torch.complex64)
    lazy = nn.LazyConv2d(4, 3)
    model = Net(forward, plain=nn.Conv2d(3, 4, 1), complex=complex_conv, lazy=lazy, quantised=quantised)
    stages = find_conv_blocks(model, torch.randn(1, 3, 6, 6))
    assert stages.names == ("plain",)
    assert reasons(stages) == {
        "complex": "filters of type torch.complex64; only real floating-point ones are supported",
        "lazy": "not initialised; run one batch through the network first",
        "quantised": "quantised filters; give the floating-point network",
    }


def test_a_batch_norm_without_statistics_ends_the_stage_and_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    stages = find_conv_blocks(model, torch.randn(1, 3, 6, 6))
    assert stages.get("0").kind == "conv"
    assert reasons(stages) == {"1": "batch norm without running statistics cannot be folded; 0 ends there"}


def test_stages_up_to_where_the_forward_pass_fails():
    model = torchvision.models.alexnet(weights=None)
    stages = find_conv_blocks(model, torch.randn(1, 3, 20, 20))
    assert [(s.name, s.kind) for s in stages] == [("features.0", "conv+relu+maxpool"), ("features.3", "conv+relu")]
    skipped = reasons(stages)
    assert set(skipped) == {"features.6", "features.8", "features.10"}
    assert all(r.startswith("not reached, the forward pass stopped: ") and "\n" not in r for r in skipped.values())


def test_a_classifier_that_does_not_fit_takes_nothing_away():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    stages = find_conv_blocks(model, torch.randn(1, 3, 8, 8))
    assert summary(stages)[0][:2] == ("0", "conv+relu+maxpool")
    assert stages.skipped == ()


def test_the_first_convolution_does_not_fit():
    with pytest.raises(UnconvError, match=r"cannot take an input of shape \(1, 3, 2, 2\): .*[Kk]ernel size") as caught:
        find_conv_blocks(nn.Sequential(nn.Conv2d(3, 4, 7)), torch.zeros(1, 3, 2, 2))
    assert "\n" not in str(caught.value)


def test_no_convolution():
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), nn.Linear(5, 2)):
        with pytest.raises(UnconvError, match="the network has no convolution"):
            find_conv_blocks(model, torch.zeros(1, 3, 2, 2))


def test_an_unknown_stage_lists_the_stages():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    stages = find_conv_blocks(model, torch.zeros(1, 3, 2, 2))
    with pytest.raises(UsageError, match=r"there is no conv block 'x'; use one such as 0, 2"):
        stages.get("x")
    with pytest.raises(UsageError, match=r"'1' is no conv block: transposed convolution"):
        stages.get("1")


def test_a_block_in_the_place_of_a_stage_lists_what_is_in_it():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    stages = find_conv_blocks(model, torch.zeros(1, 3, 2, 2))
    with pytest.raises(UsageError, match=r"^'1' is no conv block, but a module with some; use one of 1\.0, 1\.2$"):
        stages.get("1")


# capture


def test_captured_inputs_are_copies_that_nothing_in_place_changes():
    def forward(net, x):
        h = net.bn(net.a(net.act(x)))
        y = net.b(h)
        h.mul_(0)
        return net.c(net.act(y))

    torch.manual_seed(5)
    convs = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(4, 4, 1)}
    model = shake(Net(forward, act=nn.ReLU(inplace=True), bn=nn.BatchNorm2d(4), **convs)).train()
    x = torch.randn(2, 3, 6, 6)
    kept, statistics = x.clone(), model.bn.running_mean.clone()
    inputs = capture(model, ["c", "b", "a"], x)

    assert list(inputs) == ["c", "b", "a"]
    assert torch.equal(x, kept)
    assert model.bn.training
    assert torch.equal(model.bn.running_mean, statistics)
    assert not any(m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(inputs["a"], x.relu())
    torch.testing.assert_close(inputs["b"], after(model, "bn", x))
    torch.testing.assert_close(inputs["c"], after(model, "b", x).relu())


def test_capture_takes_the_first_call_and_goes_no_further_than_needed():
    def forward(net, x):
        h = net.conv(net.conv(x) + 1)
        net.last(input=h)
        raise AssertionError("went on")

    model = Net(forward, conv=nn.Conv2d(3, 3, 1), last=nn.Conv2d(3, 3, 1))
    x = torch.randn(2, 3, 4, 4)
    inputs = capture(model, ["conv", "last"], x)
    torch.testing.assert_close(inputs["conv"], x)
    torch.testing.assert_close(inputs["last"], model.conv(model.conv(x) + 1).detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_captured_values_that_are_not_finite(bad):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    x = torch.randn(4, 3, 4, 4)
    x[2, 1, 0, 0] = bad
    with pytest.raises(UnconvError, match="the input of 1 has NaN or infinite values for image 2 of the batch"):
        capture(model, ["1"], x)
    frames = Net(lambda net, x: net.conv(x.flatten(0, 1)), conv=nn.Conv2d(3, 3, 1))
    x = torch.randn(4, 5, 3, 4, 4)
    x[3, 1] = bad
    with pytest.raises(UnconvError, match="image 3 of the batch"):
        capture(frames, ["conv"], x)


def test_capture_says_what_is_wrong():
    model = Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 3, 5), b=nn.Conv2d(3, 3, 1))
    with pytest.raises(UsageError, match="the network has no module 'c'"):
        capture(model, ["c"], torch.randn(1, 3, 6, 6))
    with pytest.raises(UnconvError, match=r"does not reach b on an input of shape \(1, 3, 6, 6\)"):
        capture(model, ["b"], torch.randn(1, 3, 6, 6))
    with pytest.raises(UnconvError, match=r"cannot take an input of shape \(1, 3, 2, 2\)"):
        capture(model, ["a", "b"], torch.randn(1, 3, 2, 2))


# changed stages


def gaussian_case() -> tuple[nn.Module, Tensor, ConvBlocks]:
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(3, 50, 5), nn.BatchNorm2d(50), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(50, 60, 3), nn.ReLU()
    )
    model = shake(model).double()
    x = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    return model, x, find_conv_blocks(model, x[:1])


def test_an_imposed_region():
    _, _, stages = gaussian_case()
    stage = stages.get("4")
    pooled = stage.with_region(2)
    assert pooled.pooling == Window.of(2, 2)
    assert pooled.code_shape == (60, 1, 1)
    assert pooled.kind == "conv+relu+maxpool"
    inputs = torch.randn(2, *stage.input_shape, dtype=torch.float64)
    torch.testing.assert_close(pooled.encode(inputs).values, F.max_pool2d(stage.encode(inputs).values, 2))
    with pytest.raises(UnconvError, match=r"conv block 0 \(conv\+bn\+relu\+maxpool\) pools already"):
        stages.get("0").with_region(2)
    with pytest.raises(UnconvError, match=r"region 9 does not fit conv block 4: map .* is smaller"):
        stage.with_region(9)


def test_codes_carry_what_decoding_needs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    stages = find_conv_blocks(model, x)
    averaged, plain = (stages.get(name).encode(capture(model, [name], x)[name]) for name in ("0", "3"))
    assert isinstance(averaged.pooling, AveragePool)
    assert averaged.shape == (4, 8, 8)
    assert plain.pooling is None
    assert plain.switches is None
    assert repr(stages.get("0")) == "ConvBlock(0: conv+relu+avgpool, (3, 8, 8) -> (4, 4, 4))"
    assert stages.get("3").nonnegative_input


# every classification network of torchvision, on the meta device: shapes without values, so the large ones cost nothing


@pytest.fixture
def block_parameters_off_meta(monkeypatch):
    """RegNets compute their widths with tensors, which needs values."""
    compute = regnet.BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **options):
        with torch.device("cpu"):
            return compute(cls, *args, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(on_cpu))


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
@pytest.mark.usefixtures("block_parameters_off_meta")
def test_every_convolution_of_torchvision_is_a_stage_or_named(name):
    size = 299 if name == "inception_v3" else 224
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
        image = torch.empty(1, 3, size, size)
    stages = find_conv_blocks(model, image)
    convolutions = {path for path, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    auxiliary = {path for path in convolutions if path.startswith(("aux", "AuxLogits"))}
    assert set(stages.names) == convolutions - auxiliary
    left_out = reasons(stages)
    # a vision transformer's only convolution cuts its patches
    behind = {"vit": "encoder.layers", "swin": "features"}.get(name.split("_")[0])
    if behind:
        assert left_out.pop(behind).startswith("patch embedding only")
        assert len(stages) == 1
    assert left_out == dict.fromkeys(auxiliary, "never called in the forward pass")
    assert bool(auxiliary) == (name in {"googlenet", "inception_v3"})
    assert stages.blocks[0].source == IMAGE
    for stage in stages:
        if stage.source not in {None, IMAGE}:
            assert stages.get(stage.source).code_shape == stage.input_shape
