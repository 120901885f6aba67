"""Small networks, reached from the command line as ``cases:name``; those that break a rule are named by it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from unconv.operators import ConvOperator, gaussian_like


def draw(*shape, seed=0, dtype=torch.float64):
    """Gaussian numbers by seed."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gaussian(*shape, size, seed=0, **geometry):
    """A convolution of inputs of some size with Gaussian filters of expected unit norm."""
    channels = shape[1] * geometry.get("groups", 1)
    return ConvOperator(gaussian_like(torch.zeros(shape, dtype=torch.float64), seed), (channels, *size), **geometry)


class Net(nn.Module):
    """A small network whose forward pass is given as a function of the module and its input."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor):
        return self.run(self, x)


def conv(inputs: int = 3, outputs: int = 4, size: int = 3, **options) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


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


def vgg():
    """Three convolutions with batch norm and pooling, fixed random weights, any image of 8x8 or more."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )
    net[4].running_mean.normal_()
    net[4].running_var.uniform_(0.5, 2)
    return net


def residual():
    """A branch whose sum no chain of conv blocks crosses."""
    torch.manual_seed(1)

    def forward(net, x):
        x = torch.relu(net.stem(x))
        return net.head(x + net.branch(x))

    return Net(forward, stem=conv(3, 8), branch=conv(8, 8), head=nn.Conv2d(8, 8, 1))


def without_convolutions():
    """Nothing to study."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))


def unpadded():
    """Takes images of 5x5 and more."""
    return nn.Sequential(nn.Conv2d(3, 4, 5))


def outputs_of_many_kinds():
    """Modules that give tuples, dicts, numbers, positions and constants."""
    parts = {
        "pair": Net(lambda net, x: (x, [x * 2, "no tensor"])),
        "named": Net(lambda net, x: {"a": x.mean((2, 3)), "b": x.argmax(1)}),
        "number": Net(lambda net, x: x.sum()),
        "constant": Net(lambda net, x: torch.ones(len(x), 2)),
        "text": Net(lambda net, x: "words"),
        "transposed": Net(lambda net, x: x.flatten(2).permute(2, 0, 1)),
        "windows": Net(lambda net, x: x.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)),
        "mixed": Net(lambda net, x: x.flip(0)),
        "idle": nn.Sequential(nn.Linear(2, 2)),
    }

    def forward(net, x):
        h = net.conv(x)
        for name in list(parts)[:-1]:
            getattr(net, name)(h)
        return net.named(net.pair(h)[1][0])

    torch.manual_seed(2)
    return Net(forward, conv=conv(), **parts)


def branching():
    """The block ``b`` runs for bright images only."""
    torch.manual_seed(3)

    def forward(net, x):
        h = F.leaky_relu(net.a(x), 0.5)
        if x.mean() > 0.3:
            h = F.leaky_relu(net.b(h), 0.5)
        return net.c(h)

    return Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8))


def random():
    """Dropout that evaluation mode does not switch off."""
    return Net(lambda net, x: net.c(F.dropout(net.a(x), 0.3)), a=conv(3, 8), c=conv(8, 8))


def autocast():
    """Computes in bfloat16 with parameters in float32."""

    def forward(net, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return net.act(net.b(net.act(net.a(x))))

    return Net(forward, a=conv(3, 8), b=conv(8, 8), act=nn.ReLU())


def checkpointed(reentrant: bool = True):
    """A part whose activations are computed again in the backward pass."""

    def forward(net, x):
        return checkpoint(net.b, net.a(x), use_reentrant=reentrant)

    return Net(forward, a=conv(3, 8), b=nn.Sequential(conv(8, 4), nn.ReLU()))


def without_gradient(how: str):
    """No gradient passes through ``b``."""

    def forward(net, x):
        h = net.a(x)
        if how == "no_grad":
            with torch.no_grad():
                h = net.b(h)
        elif how == "inference_mode":
            with torch.inference_mode():
                h = net.b(h)
        else:
            h = net.b(h.detach() if how == "detach" else h.data)
        return h * 2

    return Net(forward, a=conv(3, 8), b=conv(8, 4))


def stores_activations():
    """Keeps a tensor with a history on itself, and a count of its calls in a buffer."""

    def forward(net, x):
        net.calls.add_(1)
        net.features = net.act(net.a(x))
        return net.b(net.features)

    net = Net(forward, a=conv(3, 8), act=nn.ReLU(), b=conv(8, 4))
    net.register_buffer("calls", torch.zeros(()))
    return net


def returns_nothing_from_train():
    """Its own ``train`` freezes a layer and returns nothing."""

    class Frozen(Net):
        def train(self, mode: bool = True):
            super().train(mode)
            self.conv.requires_grad_(False)

    return Frozen(lambda net, x: net.conv(x), conv=conv())


def norm_in_training_mode():
    """Its own ``train`` keeps a batch norm in training mode: it reads, and changes, the statistics of the batch."""

    class Training(Net):
        def train(self, mode: bool = True):
            super().train(mode)
            self.bn.train()
            return self

    parts = {"conv": conv(), "bn": nn.BatchNorm2d(4), "act": nn.ReLU()}
    return Training(lambda net, x: net.act(net.bn(net.conv(x))), **parts).eval()


HOOKS = {
    "convolution": lambda net: net[0].register_forward_hook(lambda module, args, y: y * 3),
    "batch norm": lambda net: net[1].register_forward_hook(lambda module, args, y: y + 1),
    "activation": lambda net: net[2].register_forward_hook(lambda module, args, y: y.clamp(max=0.1)),
    "activation's input": lambda net: net[2].register_forward_pre_hook(lambda module, args: (args[0].neg_(),)),
    "pooling's forward": lambda net: setattr(net[3], "forward", lambda x: F.max_pool2d(x, 2) * 2),
    "activation's forward": lambda net: setattr(net[2], "forward", lambda x: x.tanh()),
    "one channel": lambda net: net[0].register_forward_hook(
        lambda module, args, y: y.index_fill(1, torch.tensor(0), 0)
    ),
}
# the conv block up to there
HOOKED_KINDS = ("conv", "conv+bn", "conv+bn+relu", "conv+bn", "conv+bn+relu+maxpool", "conv+bn+tanh+maxpool", "conv")


def hooked(where: str | None):
    """A conv block in which something is changed from outside, or nothing."""
    torch.manual_seed(4)
    net = shake(nn.Sequential(conv(3, 20), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2), conv(20, 4)))
    if where is not None:
        HOOKS[where](net)
    return net


STALE = {
    "pruned": lambda module: prune.random_unstructured(module, "weight", 0.3),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


def stale(norm: str):
    """Filters that a hook computes from parameters that were changed since."""
    torch.manual_seed(5)
    net = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 4))
    STALE[norm](net[0])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net
