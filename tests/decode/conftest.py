"""Conv blocks with random filters for every kind of code, and their inputs."""

import torch
import torch.nn.functional as F

from unconv.conv_block import Activation, ConvBlock, identity
from unconv.operators import ConvOperator

ACTIVATIONS = {
    "none": identity,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "hardswish": F.hardswish,
}


def make_stage(pooling, activation="relu", *, shape=(3, 9, 10), filters=5, seed=0, dtype=torch.float64, **geometry):
    dims = len(shape) - 1
    generator = torch.Generator().manual_seed(seed)
    groups = geometry.get("groups", 1)
    weight = torch.randn(filters, shape[0] // groups, *[3] * dims, generator=generator, dtype=dtype) / 3
    bias = torch.randn(filters, generator=generator, dtype=dtype) / 3
    operator = ConvOperator(weight, shape, **{"padding": 1, **geometry})
    return ConvBlock("conv", operator, bias, Activation(activation, ACTIVATIONS[activation]), pooling, "image", True)


def draw(stage, n=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *stage.input_shape, generator=generator, dtype=stage.operator.dtype)
