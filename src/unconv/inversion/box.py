"""Bounds of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Bounds of an image, such as those of pixels after preprocessing."""

    low: Tensor  # broadcasts against images, such as (C, 1, 1)
    high: Tensor  # the same

    def project(self, x: Tensor) -> Tensor:
        """Nearest image within the bounds."""
        return torch.minimum(torch.maximum(x, self.low), self.high)


def contrast(box: Box | None) -> float:
    """What counts as one unit of contrast: a quarter of the mean width of the bounds, 1 without bounds."""
    return 1.0 if box is None else (box.high - box.low).mean().item() / 4
