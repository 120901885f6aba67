import pytest
import torch
from torch import nn

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
