"""What ``import unconv`` offers: the verbs of the command line as plain functions (signatures; bodies follow)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from unconv.results import InvertResult, ReportResult
    from unconv.tracing import Layers

SideInfo = Literal["none", "switches", "gates"]
Numbers = str | float | Sequence[float]
Images = Any
Model = str | nn.Module
Recover = Literal["image", "input"]
BUDGET = 600.0


class ModelOptions(TypedDict, total=False):
    """Keyword arguments that every function takes: how the model, and its images, are opened.

    Attributes:
        weights: Of a named model: a file, or the name of torchvision weights (downloaded then).
        size: Side of the square that images are resized and cropped to, in pixels.
        mean: Subtracted from each channel; with ``std``. Above 1 means pixels in 0..255.
        std: Divides each channel.
        preprocess: Of a network of your own: from an RGB PIL image to a tensor ``(C, H, W)``.
        batch: Images at a time.
        limit: Use only the first so many images.
        device: Where to compute. Where ``None``: where the network is, the CPU for a named one.
        seed: Seed of everything random.
        progress: Whether to show progress on stderr.
    """

    weights: str | None
    size: int | None
    mean: Numbers | None
    std: Numbers | None
    preprocess: Callable[[Image.Image], Tensor] | None
    batch: int | None
    limit: int | None
    device: str | None
    seed: int
    progress: bool


def invert(
    model: Model,
    layer: str,
    images: Images = None,
    *,
    features: Tensor | None = None,
    method: str | None = None,
    side_info: SideInfo = "none",
    recover: Recover = "image",
    code: Literal["network", "paper"] = "network",
    region: int | None = None,
    k: int | None = None,
    passes: int | None = None,
    budget: float | None = None,
    decoders: str | Path | Sequence[str | Path] | None = None,
    reference_images: str | Path | None = None,
    config: Any = None,
    out: str | Path | None = None,
    ray: str | None = None,
    **options: Unpack[ModelOptions],
) -> InvertResult:
    raise NotImplementedError


def report(
    model: Model,
    images: Images = None,
    *,
    out: str | Path | None = None,
    layers: Sequence[str] | Literal["all"] | None = None,
    methods: Sequence[str] | None = None,
    side_info: Sequence[SideInfo] | None = None,
    passes: int | None = None,
    budget: float | None = BUDGET,
    region: int = 2,
    samples: int = 50,
    pictures: int = 10,
    decoders: str | Path | Sequence[str | Path] | None = None,
    reference_images: str | Path | None = None,
    command: str | None = None,
    ray: str | None = None,
    **options: Unpack[ModelOptions],
) -> ReportResult:
    raise NotImplementedError


def layers(model: Model, image: Images = None, **options: Unpack[ModelOptions]) -> Layers:
    raise NotImplementedError


def sparsity(
    model: Model, images: Images = None, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]
) -> dict[str, Any]:
    raise NotImplementedError


def coherence(
    model: Model, *, blocks: Sequence[str] | None = None, **options: Unpack[ModelOptions]
) -> dict[str, Any]:
    raise NotImplementedError


def rip(
    model: Model,
    images: Images = None,
    *,
    blocks: Sequence[str] | None = None,
    k: int | None = None,
    region: int = 2,
    samples: int = 1000,
    boundary: Literal["full", "cropped"] = "full",
    filters: Literal["learned", "normalised", "gaussian"] = "normalised",
    effort: float = 0.2,
    **options: Unpack[ModelOptions],
) -> dict[str, Any]:
    raise NotImplementedError


def train_decoder(
    model: Model,
    layer: str,
    images: Images,
    *,
    out: str | Path | None = None,
    steps: int = 2000,
    rate: float = 2e-3,
    held_out: float = 0.1,
    crop: int | None = None,
    every: int = 100,
    **options: Unpack[ModelOptions],
) -> dict[str, Any]:
    raise NotImplementedError
