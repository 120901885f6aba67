"""Images that are in memory already, as a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unconv.errors import UnconvError, UsageError
from unconv.images import ImageStream
from unconv.preprocessing import Preprocessing


class InMemoryImages(ImageStream):
    """PIL images, which are prepared like files, and tensors, which are what the network receives already."""

    def __init__(
        self, images: Sequence[Image.Image | Tensor], preprocess: Preprocessing, batch_size: int, limit: int | None
    ) -> None:
        """Describe the stream; nothing is prepared yet.

        Args:
            images: PIL images (alpha is dropped) and tensors of shape ``(C, H, W)``.
            preprocess: From a PIL image to a tensor of shape ``(C, H, W)``.
            batch_size: Largest number of images in a batch.
            limit: Use only the first so many; all where ``None``.

        Raises:
            UsageError: If there is no image, or one is something else.
        """
        names = [f"image-{i:04d}" for i in range(len(images))]
        self._given = dict(zip(names, images, strict=True))
        if not images:
            raise UsageError("images is empty; give at least one")
        for name, image in self._given.items():
            if isinstance(image, Tensor):
                if image.ndim != 3 or image.numel() == 0 or image.is_complex():
                    raise UsageError(f"{name} is a {image.dtype} tensor of shape {tuple(image.shape)}; give (C, H, W)")
            elif not isinstance(image, Image.Image):
                raise UsageError(f"{name} is a {type(image).__name__}; give paths, PIL images or tensors")
        super().__init__(names[:limit], preprocess, batch_size)

    def digest(self) -> str:
        """A hash of everything that the images are made of.

        Returns:
            SHA-256, in hexadecimal digits.
        """
        found = hashlib.sha256()
        for path in self.paths:
            image = self._given[path.name]
            if isinstance(image, Tensor):
                values = image.detach().to("cpu", torch.float32).contiguous()
                found.update(f"{tuple(values.shape)}".encode() + values.numpy().tobytes())
            else:
                found.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return found.hexdigest()

    def _prepare(self, path: Path, name: str) -> Tensor:
        image = self._given[name]
        if not isinstance(image, Tensor):
            return self.preprocess(image)
        values = image.detach().to("cpu", torch.float32)
        if not values.isfinite().all():
            raise UnconvError("NaN or infinite values")
        return values
