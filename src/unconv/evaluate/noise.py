"""Noise on features as a defence: Gaussian, of a level relative to the features' root mean square."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noisy_name(layer: str, noise: float) -> str:
    """Return the name under which what is fitted to a layer's noisy features is kept."""
    return f"{layer} noise {noise:g}" if noise else layer


def with_noise(features: Tensor, noise: float, seeds: Sequence[int]) -> Tensor:
    """Return features with noise; that of an image depends on its seed alone. Shape ``(N, *shape)``."""
    if not noise:
        return features
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    each = [add_noise(y[None], noise, generator) for y, generator in zip(features, generators, strict=True)]
    return torch.cat(each)


def add_noise(features: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return features ``y + noise * rms(y) * n`` with ``n`` of the normal distribution. Shape ``(N, *shape)``."""
    if not noise:
        return features
    size = features.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (features.ndim - 1))
    return features + noise * size * torch.randn(features.shape, generator=generator).to(features)
