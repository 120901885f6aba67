"""From a PIL image to the tensor that a network receives, and back to pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from unconv.errors import UnconvError, UsageError
from unconv.images import one_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = tuple[float, float, float]


class Preprocessing(Protocol):
    """What the rest of the project asks of a preprocessing."""

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image to the network's input, shape ``(C, H, W)``."""
        ...

    def to_pixels(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Inputs back to pixels, ``[0, 1]`` for real images and not clipped. Shape ``(*batch, C, H, W)``."""
        ...

    def describe(self) -> dict[str, Any]:
        """What ``config.json`` keeps of it."""
        ...


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, and ``(scale * pixels - mean) / std`` with pixels in ``[0, 1]``, as torchvision does it.

    Attributes:
        resize: Length of the shorter side in pixels after resizing; ``None`` keeps the image's size.
        crop: Side of the centred square that is kept, in pixels; ``None`` keeps everything.
        mean: Subtracted from each channel, in the network's order of channels.
        std: Divides each channel, in the network's order of channels.
        scale: 1 where the network counts pixels in ``[0, 1]``, 255 where it counts them in ``[0, 255]``.
        bgr: Whether the network reads blue, green, red.
        interpolation: How resizing interpolates (with antialiasing).

    Raises:
        ValueError: If a value is out of range or not finite.
    """

    resize: int | None = None
    crop: int | None = None
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    scale: float = 1.0
    bgr: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            side = getattr(self, name)
            if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 1):
                raise ValueError(f"{name} is {side!r}; expected a number of pixels, at least 1, or None")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than the resized shorter side {self.resize}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_finite(v) for v in values):
                raise ValueError(f"{name} is {values!r}; expected three finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}; expected three numbers above 0")
        if self.scale not in {1.0, 255.0}:
            raise ValueError(f"scale is {self.scale!r}; expected 1 or 255")
        if not isinstance(self.bgr, bool):
            raise ValueError(f"bgr is {self.bgr!r}; expected true or false")
        if self.interpolation not in {"bilinear", "bicubic"}:
            raise ValueError(f"interpolation is {self.interpolation!r}; expected 'bilinear' or 'bicubic'")

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare one image.

        Args:
            image: Any mode that Pillow converts to RGB.

        Returns:
            Shape ``(3, H, W)``, float32.

        Raises:
            UnconvError: If nothing resizes and the image is smaller than the crop, or the resized image would be
                larger than Pillow's limit.
        """
        image = image.convert("RGB")
        if self.resize is not None:
            # a 1x30000 strip passes Pillow's limit when opened, and is far beyond it once its short side is resized
            grown = max(image.size) / min(image.size) * self.resize**2
            if Image.MAX_IMAGE_PIXELS is not None and grown > Image.MAX_IMAGE_PIXELS:
                raise UnconvError(f"{image.width}x{image.height} pixels are too narrow to resize to {self.resize}")
            mode = InterpolationMode.BICUBIC if self.interpolation == "bicubic" else InterpolationMode.BILINEAR
            image = TF.resize(image, [self.resize], interpolation=mode, antialias=True)  # pyright: ignore
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise UnconvError(
                    f"{image.width}x{image.height} pixels are less than the crop of {self.crop}; use a larger image"
                )
            image = TF.center_crop(image, [self.crop])  # pyright: ignore
        pixels = TF.pil_to_tensor(image).float()
        if self.bgr:
            pixels = pixels.flip(0)
        if self.scale == 1.0:
            pixels = pixels.div_(255)
        return pixels.sub_(_column(self.mean, pixels)).div_(_column(self.std, pixels))

    def to_pixels(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Undo the normalisation and the order of channels.

        Args:
            x: Inputs of the network. Shape ``(*batch, 3, H, W)``.
            reference: Not needed here; see ``UserPreprocess.to_pixels``.

        Returns:
            RGB pixels, in ``[0, 1]`` for inputs made from images, not clipped. Same shape, dtype and device.
        """
        del reference
        pixels = (x * _column(self.std, x) + _column(self.mean, x)) / self.scale
        return pixels.flip(-3) if self.bgr else pixels

    def describe(self) -> dict[str, Any]:
        """Everything that ``from_description`` needs, in JSON's types.

        Returns:
            The fields; tuples as lists.
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Preprocess:
        """The preprocessing that ``describe`` describes.

        Args:
            description: Some or all of the fields; the rest take their defaults.

        Returns:
            The preprocessing.

        Raises:
            ValueError: If a field is unknown or its value cannot be used.
        """
        known = [f.name for f in fields(cls)]
        for name in description:
            if name not in known:
                raise ValueError(f"unknown field {name!r}; expected {', '.join(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class UserPreprocess:
    """A user's own function from a PIL image to a tensor.

    Attributes:
        function: Takes an RGB PIL image, returns a tensor of shape ``(C, H, W)`` (or ``(1, C, H, W)``).
        inverse: A preprocessing whose ``to_pixels`` undoes the function's normalisation, where one is known.
    """

    function: Callable[[Image.Image], Tensor]
    inverse: Preprocess | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepare one image.

        Args:
            image: Any mode that Pillow converts to RGB.

        Returns:
            What the function returns, checked, float32. Shape ``(C, H, W)``.

        Raises:
            UnconvError: If the function fails, or returns anything but a finite image tensor.
        """
        try:
            x = self.function(image.convert("RGB"))
        except Exception as error:
            raise UnconvError(one_line(f"preprocess failed: {type(error).__name__}: {error}")) from error
        if not isinstance(x, Tensor):
            raise UnconvError(f"preprocess returned {type(x).__name__}; expected a tensor of shape (C, H, W)")
        x = x.detach()
        if x.ndim == 4 and x.shape[0] == 1:
            x = x[0]
        if x.ndim != 3 or x.numel() == 0:
            raise UnconvError(f"preprocess returned shape {tuple(x.shape)}; expected (C, H, W)")
        if x.is_complex():
            raise UnconvError("preprocess returned complex numbers; expected real ones")
        x = x.to("cpu", torch.float32)
        if not torch.isfinite(x).all():
            raise UnconvError("preprocess returned NaN or infinite values")
        return x

    def to_pixels(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Undo the normalisation where it is known; otherwise map the reference's range to ``[0, 1]``.

        Args:
            x: Inputs of the network. Shape ``(*batch, C, H, W)``.
            reference: The original images' inputs, same shape, whose smallest and largest value (of each image)
                become 0 and 1 where no inverse is known; ``x`` itself where ``None``.

        Returns:
            Pixels, not clipped. Same shape.
        """
        if self.inverse is not None and x.shape[-3] == 3:
            return self.inverse.to_pixels(x)
        reference = x if reference is None else reference
        low = reference.amin(dim=(-3, -2, -1), keepdim=True)
        span = reference.amax(dim=(-3, -2, -1), keepdim=True) - low
        return (x - low) / torch.where(span > 0, span, 1.0)

    def describe(self) -> dict[str, Any]:
        """Where the function comes from, and what is known of its inverse.

        Returns:
            JSON's types only.
        """
        owner = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        inverse = None if self.inverse is None else self.inverse.describe()
        return {"function": f"{owner.__module__}:{owner.__qualname__}", "inverse": inverse}


def of_user(function: Callable[[Image.Image], Tensor]) -> Preprocessing:
    """Wrap a user's preprocessing, and read its inverse off it where it says so.

    torchvision's presets and a ``Compose`` that ends in ``Normalize`` name their mean and std.

    Args:
        function: A ``Preprocess``, or any function from a PIL image to a tensor.

    Returns:
        The function as it is if it is a ``Preprocess``, otherwise wrapped.

    Raises:
        UnconvError: If it cannot be called.
    """
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


def normalisation(mean: str | float | Sequence[float], std: str | float | Sequence[float]) -> Preprocess:
    """A preprocessing without resizing from ``--mean`` and ``--std``.

    Args:
        mean: Three numbers, one for all channels, or either as text with commas. A value above 1 means that the
            network counts pixels in ``[0, 255]`` instead of ``[0, 1]``.
        std: The same; a value above 1 says the same.

    Returns:
        The preprocessing.

    Raises:
        UsageError: If they are not numbers, or std is not above 0.
    """
    means, stds = channels(mean, "--mean"), channels(std, "--std")
    try:
        return Preprocess(mean=means, std=stds, scale=255.0 if max(*means, *stds) > 1 else 1.0)
    except ValueError as error:
        raise UsageError(f"--mean and --std: {error}") from error


def channels(value: str | float | Sequence[float], name: str) -> Channels:
    """One number per colour channel.

    Args:
        value: Three numbers, one for all channels, or either as text with commas.
        name: What the numbers are, for the message.

    Returns:
        Three numbers.

    Raises:
        UsageError: If there are neither one nor three finite numbers.
    """
    parts: Sequence[Any]
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, int | float):
        parts = [value]
    else:
        parts = list(value)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in {1, 3} or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} is {value!r}; expected one or three finite numbers, such as 0.485,0.456,0.406")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _column(values: Channels, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
