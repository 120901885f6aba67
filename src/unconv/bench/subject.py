"""What is benchmarked: the first stages of VGG-19, with its weights or with Gaussian filters, and one photograph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unconv.images import find_images, read_image, sample_photographs
from unconv.operators import gaussian_like
from unconv.preprocess import Preprocess
from unconv.stage import Stage
from unconv.stages import capture, find_stages
from unconv.zoo import load_model

POOL_1, CONV_2_1 = "features.2", "features.5"
REGION, BIAS = 2, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BenchSubject:
    """A network and an image that every row works on.

    Attributes:
        module: The network, cut after conv(2,1) where it has Gaussian filters.
        image: Shape ``(1, 3, side, side)``.
        pool: The stage of pool(1).
        conv: The stage of conv(2,1), its map pooled by 2x2 regions.
        inner: Its input. Shape ``(1, 64, side / 2, side / 2)``.
        words: What it is, for people.
    """

    module: nn.Module
    image: Tensor
    pool: Stage
    conv: Stage
    inner: Tensor
    words: str

    @property
    def first_layers(self) -> tuple[nn.Conv2d, ...]:
        """The convolutions before pool(1)."""
        found = tuple(self.module.get_submodule(name) for name in ("features.0", POOL_1))
        return tuple(layer for layer in found if isinstance(layer, nn.Conv2d))

    @staticmethod
    def load(
        side: int, weights: str | None, mean: str | None, std: str | None, image: str | None, device: torch.device
    ) -> BenchSubject:
        """Load VGG-19 with given weights, or draw Gaussian filters in its first three layers.

        Args:
            side: Side of the image in pixels.
            weights: A file of VGG-19's weights; Gaussian filters where ``None``.
            mean: Subtracted from each channel, with weights.
            std: Divides each channel, with weights.
            image: File of the image; a bundled photograph where ``None``.
            device: Where to compute.

        Returns:
            The subject.
        """
        file = sample_photographs()[0] if image is None else find_images(image)[0]
        picture, _ = read_image(file)
        if weights is None:
            module, prepare = _gaussian_vgg(), Preprocess(resize=side, crop=side, mean=MEAN, std=STD)
            words = f"first three layers of VGG-19's shape, Gaussian filters, a photograph at {side} px"
        else:
            loaded = load_model("vgg19", weights=weights, size=side, mean=mean, std=std)
            module, prepare = loaded.module, loaded.preprocess
            words = f"VGG-19, weights {loaded.weights.sha256[:8] if loaded.weights.sha256 else ''}, {side} px"
        module = module.eval().requires_grad_(False).to(device)
        x = prepare(picture)[None].to(device)
        stages = find_stages(module, x)
        inner = capture(module, [CONV_2_1], x)[CONV_2_1]
        conv = stages.get(CONV_2_1)
        conv = conv if conv.pooling is not None else conv.with_region(REGION)
        return BenchSubject(module, x, stages.get(POOL_1), conv, inner, words)


class _Net(nn.Module):
    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def _gaussian_vgg() -> nn.Module:
    def conv(inputs: int, outputs: int, seed: int) -> nn.Conv2d:
        made = nn.Conv2d(inputs, outputs, 3, padding=1)
        with torch.no_grad():
            # twice the variance of unit filters, so that ReLU leaves the scale as it was
            made.weight.copy_(2**0.5 * gaussian_like(made.weight, seed))
            assert made.bias is not None
            # without biases a black start sits on the bend of every ReLU, where no gradient leads away
            made.bias.normal_(0, BIAS, generator=torch.Generator().manual_seed(seed))
        return made

    layers = [conv(3, 64, 0), nn.ReLU(), conv(64, 64, 1), nn.ReLU(), nn.MaxPool2d(2), conv(64, 128, 2), nn.ReLU()]
    return _Net(nn.Sequential(*layers))
