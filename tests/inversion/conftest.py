import pytest
import torch
from torch import nn

from unconv.inversion.box import Box
from unconv.inversion.frozen_network import LayerFunction


@pytest.fixture
def make():
    """Makes a small function with more features than pixels, and noise images."""

    def function_and_images(size=8, n=2, activation=nn.ReLU):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1), activation(), nn.Conv2d(12, 16, 3, padding=1), activation(), nn.MaxPool2d(2)
        ).double()
        x = torch.rand(n, 2, size, size, dtype=torch.float64) - 0.5
        return LayerFunction(model, "4", x.shape[1:]), x

    return function_and_images


@pytest.fixture
def smooth_images():
    """Few features of images that are smooth, of one colour, and within a box."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ).double()
    coarse = torch.rand(2, 1, 4, 4, dtype=torch.float64) - 0.5
    x = nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic").expand(2, 3, 16, 16).contiguous()
    box = Box(torch.full((3, 1, 1), -1.0).double(), torch.full((3, 1, 1), 1.0).double())
    return LayerFunction(model, "5", x.shape[1:]), x, box
