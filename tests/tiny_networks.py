"""Networks small enough for end-to-end tests, reached as ``tiny_networks:name``."""

import torch
from torch import nn


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
    """A branch whose sum no chain of stages crosses."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.branch = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(x + self.branch(x))

    return Residual()


def without_convolutions():
    """Nothing to study."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))


def unpadded():
    """Takes images of 5x5 and more."""
    return nn.Sequential(nn.Conv2d(3, 4, 5))


def not_finite():
    """Overflows behind the first convolution on bright images."""
    net = vgg()
    net[0].weight.data.fill_(3e38)
    return net
