"""From a PIL image to the tensor that a network receives, and back to pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from unconv.errors import UnconvError, UsageError
from unconv.io import one_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = tuple[float, float, float]
Numbers = str | float | Sequence[float]
INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, and ``(scale * pixels - mean) / std`` with pixels in ``[0, 1]``, as torchvision does it."""

    resize: int | None = None  # length of the shorter side in pixels; None keeps the image's size
    crop: int | None = None  # side of the centred square that is kept, in pixels; None keeps everything
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    scale: float = 1.0  # 1 where the network counts pixels in [0, 1], 255 where it counts them in [0, 255]
    bgr: bool = False  # whether the network reads blue, green, red
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # with antialiasing

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input ``(3, H, W)``, float32; an UnconvError if the image is smaller than the crop."""
        image = image.convert("RGB")
        if self.resize is not None:
            # a 1x30000 strip passes Pillow's limit when opened, and is far beyond it once its short side is resized
            pixels = max(image.size) / min(image.size) * self.resize**2
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                raise UnconvError(f"{image.width}x{image.height} pixels are too narrow to resize to {self.resize}")
            image = TF.resize(image, [self.resize], INTERPOLATIONS[self.interpolation])  # pyright: ignore
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise UnconvError(
                    f"{image.width}x{image.height} pixels are less than the crop of {self.crop}; use a larger image"
                )
            image = TF.center_crop(image, [self.crop])  # pyright: ignore
        x = TF.pil_to_tensor(image).float()
        if self.bgr:
            x = x.flip(0)
        if self.scale == 1.0:
            x = x.div_(255)
        return x.sub_(_column(self.mean, x)).div_(_column(self.std, x))

    def to_pixels(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Undo the normalisation, without clipping; where its three channels do not fit ``x``, map its range."""
        mean, std = self.mean, self.std
        if x.shape[-3] != 3:
            if len(set(mean)) > 1 or len(set(std)) > 1:
                return _stretched(x, reference)
            mean, std = mean[:1], std[:1]
        pixels = (x * _column(std, x) + _column(mean, x)) / self.scale
        return pixels.flip(-3) if self.bgr and x.shape[-3] == 3 else pixels

    def describe(self) -> dict[str, Any]:
        """Return the fields in JSON's types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class UserPreprocess:
    """A user's own function from a PIL image to a tensor."""

    # takes an RGB PIL image, returns a tensor of shape (C, H, W) (or (1, C, H, W))
    function: Callable[[Image.Image], Tensor]
    # a preprocessing whose to_pixels undoes the function's normalisation, where one is known
    inverse: Preprocess | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return what the function returns, ``(C, H, W)`` in float32; an UnconvError if it is no finite image."""
        try:
            x = self.function(image.convert("RGB"))
        except Exception as error:
            raise UnconvError(one_line(f"preprocess failed: {type(error).__name__}: {error}")) from error
        if not isinstance(x, Tensor):
            raise UnconvError(f"preprocess returned {type(x).__name__}; expected a tensor of shape (C, H, W)")
        if x.ndim == 4 and x.shape[0] == 1:
            x = x[0]
        if x.ndim != 3 or x.numel() == 0:
            raise UnconvError(f"preprocess returned shape {tuple(x.shape)}; expected (C, H, W)")
        if x.is_complex():
            raise UnconvError("preprocess returned complex numbers; expected real ones")
        x = x.detach().to("cpu", torch.float32)
        if not torch.isfinite(x).all():
            raise UnconvError("preprocess returned NaN or infinite values")
        return x

    def to_pixels(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Undo the normalisation where it is known; otherwise map the range of each reference image to ``[0, 1]``."""
        return _stretched(x, reference) if self.inverse is None else self.inverse.to_pixels(x, reference)

    def describe(self) -> dict[str, Any]:
        """Return where the function comes from, and what is known of its inverse, in JSON's types."""
        owner = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        inverse = None if self.inverse is None else self.inverse.describe()
        return {"function": f"{owner.__module__}:{owner.__qualname__}", "inverse": inverse}


Preprocessing = Preprocess | UserPreprocess


def of_user(function: Callable[[Image.Image], Tensor]) -> Preprocessing:
    """Wrap a user's function, with the inverse of its final ``Normalize`` where it has one (presets and Compose)."""
    if isinstance(function, Preprocess | UserPreprocess):
        return function
    if not callable(function):
        raise UnconvError(
            f"preprocess is a {type(function).__name__}; expected a function from a PIL image to a tensor"
        )
    steps = getattr(function, "transforms", None)
    last = steps[-1] if isinstance(steps, list | tuple) and steps else function
    try:
        # duck-typed: Normalize exists in torchvision.transforms and in transforms.v2, without a common base
        inverse = normalisation(last.mean, last.std)  # pyright: ignore
    except (AttributeError, TypeError, UsageError):
        inverse = None
    return UserPreprocess(function, inverse)


def normalisation(mean: Numbers, std: Numbers) -> Preprocess:
    """Return a preprocessing without resizing; a mean or std above 1 means that pixels count in ``[0, 255]``."""
    means, stds = channels(mean, "mean"), channels(std, "std")
    if min(stds) <= 0:
        raise UsageError(f"std is {stds!r}; expected numbers above 0")
    return Preprocess(mean=means, std=stds, scale=255.0 if max(*means, *stds) > 1 else 1.0)


def channels(value: Numbers, name: str) -> Channels:
    """Return one number per colour channel, from three numbers, one for all, or either as text with commas."""
    try:
        parts = [value] if isinstance(value, int | float) else value.split(",") if isinstance(value, str) else value
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in {1, 3} or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} is {value!r}; expected one or three finite numbers, such as 0.485,0.456,0.406")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _stretched(x: Tensor, reference: Tensor | None) -> Tensor:
    """Map the range of each reference image to [0, 1]."""
    reference = x if reference is None else reference
    low = reference.amin(dim=(-3, -2, -1), keepdim=True)
    span = reference.amax(dim=(-3, -2, -1), keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1.0)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
