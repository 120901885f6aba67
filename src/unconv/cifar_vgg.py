"""The bundled network: a small VGG with batch norm for 32x32 images, fully convolutional."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CifarVGG(nn.Module):
    """Three blocks of two 3x3 convolutions, each block closed by 2x2 max pooling.

    Channels 64, 64, pool, 128, 128, pool, 256, 256, pool; batch norm and ReLU after each convolution;
    then the mean over all positions and a linear classifier, so any image of at least 8x8 pixels fits.
    """

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(N, classes)`` of normalised RGB images ``(N, 3, H, W)`` with ``H, W >= 8``."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))
