"""Images in and out: finding, reading, batching, writing and comparing them."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from unconv.errors import UnconvError, UsageError, check_whole
from unconv.io import display_name, one_line, reason, replacing, writing

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# content decides, not the extension; a closed list keeps out formats that Pillow hands to other programs (EPS)
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
# errors of the machine, not of one image: going on would record every further image as bad
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, getattr(errno, "ESTALE", None), errno.ENOTCONN}
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """List the files below folders that have the name of an image, and files given by name, in byte order."""
    # what cannot be read or listed is in the list too, so that it is named when it is skipped
    sources = [Path(item) for item in ([source] if isinstance(source, str | Path) else source)]
    paths: set[Path] = set()
    for item in sources:
        try:
            is_folder = stat.S_ISDIR(os.stat(item).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"no folder or file {display_name(item)}; give a folder of images") from error
        except OSError as error:
            raise UnconvError(f"cannot read {display_name(item)}: {reason(error)}") from error
        paths |= set(_walk(item)) if is_folder else {item}
    if not paths:
        where = ", ".join(map(display_name, sources)) or "an empty list"
        raise UnconvError(f"no images in {where}; files with these extensions are looked for: {' '.join(EXTENSIONS)}")
    return sorted(paths, key=lambda path: [os.fsencode(part) for part in path.parts])


def _walk(top: Path) -> Iterator[Path]:
    errors: list[OSError] = []
    for folder, folders, files in os.walk(top, onerror=errors.append):
        yield from (Path(folder, name) for name in (*folders, *files) if name.lower().endswith(EXTENSIONS))
    for error in errors:
        if error.filename is None or Path(error.filename) == top:
            raise UnconvError(f"cannot list {display_name(top)}: {reason(error)}") from error
        yield Path(error.filename)


def sample_photographs() -> list[Path]:
    """Return four colour photographs without copyright restrictions, from inside the scikit-image package."""
    folder = Path(str(resources.files("skimage") / "data"))
    return [folder / name for name in SAMPLES]


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read one image, upright, as RGB with 8 bits per channel; its content decides the format, not its extension.

    Transparency is laid on white, 16 bits per channel are rounded to 8, of an animation the first frame is taken.
    UnconvError gives the reason, without the file's name; OSError where the machine fails rather than the file.
    """
    path = Path(path)
    try:
        _check_is_file(path)
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            # Pillow only warns between its limit and twice that
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                image.load()
                return to_rgb(image)
    except UnconvError:
        raise
    except UnidentifiedImageError as error:
        raise UnconvError("not an image that can be read (JPEG, PNG, BMP, GIF, TIFF, WebP, PPM)") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnconvError(f"more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}") from error
    except Exception as error:
        folder_lost = isinstance(error, FileNotFoundError) and not path.parent.is_dir()
        if isinstance(error, OSError) and (error.errno in MACHINE_ERRORS or folder_lost):
            raise
        # Pillow's decoders raise almost anything on malformed files: OSError, SyntaxError, struct.error, ...
        known = isinstance(error, OSError) and error.strerror is not None
        raise UnconvError(reason(error) if known else f"damaged: {reason(error)}") from error


def _check_is_file(path: Path) -> None:
    # a pipe named x.jpg would block for ever when opened
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise UnconvError("broken link") from None
        raise
    if stat.S_ISDIR(status.st_mode):
        raise UnconvError("a folder" if os.access(path, os.R_OK | os.X_OK) else "a folder that cannot be listed")
    if not stat.S_ISREG(status.st_mode):
        raise UnconvError("not a regular file")
    if status.st_size == 0:
        raise UnconvError("empty file")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright image with 8 bits per channel, transparency laid on white."""
    with contextlib.suppress(Exception):  # malformed EXIF data say nothing about the pixels, which were read
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnconvError("32-bit integer pixels have no agreed range; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnconvError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out: its name, as ``display_name`` shows it, and the reason in one line."""

    file: str
    reason: str


def none_left(count: int, skipped: Sequence[SkippedImage]) -> str:
    """Return the message for images of which none could be used."""
    first = "".join(f"; the first, {image.file}: {image.reason}" for image in skipped[:1])
    return f"none of the {count} images could be used{first}"


@dataclass(frozen=True)
class Batch:
    """Images of one size, prepared for a network."""

    names: tuple[str, ...]  # file names, as display_name shows them
    inputs: Tensor  # shape (N, C, H, W), float32
    indices: tuple[int, ...]  # place of each image in the list of images


class ImageStream:
    """Batches of prepared images, in order and in constant memory; it can be run through many times.

    A batch is closed when it is full or when the next image has another size, so the order of the paths is the order of
    the images. What cannot be read is skipped, by name and with its reason; ``skipped`` has what the last pass, so far,
    left out. With ``need_one`` a pass without a single usable image is an error.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int = 8,
        *,
        root: str | Path | None = None,
        need_one: bool = True,
    ) -> None:
        check_whole(batch_size=batch_size)
        self.paths = [Path(path) for path in paths]
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.root = root
        self.need_one = need_one
        self.first = 0
        self.skipped: list[SkippedImage] = []

    def __len__(self) -> int:
        return len(self.paths)

    def blocks(self) -> list[range]:
        """Return the images' indices in ranges of ``batch_size``, which depend on their places alone."""
        end = self.first + len(self.paths)
        return [range(i, min(i + self.batch_size, end)) for i in range(self.first, end, self.batch_size)]

    def block(self, indices: range) -> ImageStream:
        """Return a stream of some of the images; a pass without a single usable one is no error then."""
        part = copy.copy(self)
        part.paths = self.paths[indices.start - self.first : indices.stop - self.first]
        part.first, part.need_one, part.skipped = indices.start, False, []
        return part

    def absolute(self) -> ImageStream:
        """Return the stream for a process in another folder."""
        part = copy.copy(self)
        part.paths = [path.absolute() for path in self.paths]
        part.root = None if self.root is None else Path(self.root).absolute()
        return part

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; an UnconvError if every image was skipped, or the machine, not an image, fails."""
        self.skipped = []
        waiting: list[tuple[int, str, Tensor]] = []
        for index, path in enumerate(self.paths, self.first):
            name = display_name(path, self.root)
            try:
                x = self._prepare(path)
            except UnconvError as error:
                self.skipped.append(SkippedImage(name, one_line(str(error))))
                continue
            except OSError as error:
                raise UnconvError(f"cannot go on reading images at {name}: {reason(error)}") from error
            if waiting and waiting[0][2].shape != x.shape:
                yield _batch(waiting)
                waiting = []
            waiting.append((index, name, x))
            if len(waiting) == self.batch_size:
                yield _batch(waiting)
                waiting = []
        if waiting:
            yield _batch(waiting)
        if self.need_one and len(self.skipped) == len(self.paths):
            raise UnconvError(none_left(len(self.paths), self.skipped))

    def _prepare(self, path: Path) -> Tensor:
        image = self._read(path)
        try:
            return image if isinstance(image, Tensor) else self.preprocess(image)
        except (MemoryError, RuntimeError) as error:
            # torch says with a RuntimeError that there is no memory left
            raise UnconvError(f"the image cannot be prepared: {reason(error)}") from error

    def _read(self, path: Path) -> Image.Image | Tensor:
        return read_image(path)


class InMemoryImages(ImageStream):
    """A stream of pictures, which are prepared like files, and of tensors, which the network receives as they are.

    Pictures are PIL images and uint8 arrays ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``; tensors, and arrays of
    floating-point numbers, have shape ``(C, H, W)``. A batch is one tensor or array with an axis more in front.
    """

    def __init__(
        self,
        images: Image.Image | Tensor | np.ndarray | Sequence[Image.Image | Tensor | np.ndarray],
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int = 8,
        limit: int | None = None,
    ) -> None:
        if isinstance(images, Image.Image) or _is_picture(images):
            images = [images]
        elif isinstance(images, Tensor | np.ndarray):
            if images.ndim != 4:
                one = " of (C, H, W), such as [image]" if images.ndim == 3 else ""
                raise UsageError(f"images have shape {tuple(images.shape)}; give a batch (N, C, H, W) or a list{one}")
            images = list(images)
        if not len(images):
            raise UsageError("images is empty; give at least one")
        names = [f"image-{i:04d}" for i in range(len(images))]
        self._images = {name: _picture_or_tensor(image, name) for name, image in zip(names, images, strict=True)}
        super().__init__(names[:limit], preprocess, batch_size)

    def absolute(self) -> InMemoryImages:
        """Return the stream itself, which reads no files."""
        return self

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal digits, of everything that the images are made of."""
        digest = hashlib.sha256()
        for path in self.paths:
            image = self._images[path.name]
            if isinstance(image, Tensor):
                digest.update(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
            else:
                digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return digest.hexdigest()

    def _read(self, path: Path) -> Image.Image | Tensor:
        image = self._images[path.name]
        if not isinstance(image, Tensor):
            return to_rgb(image)
        if not image.isfinite().all():
            raise UnconvError("NaN or infinite values")
        return image


def _is_picture(image: object) -> TypeGuard[np.ndarray]:
    """Return whether an array holds 8-bit pixels ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not image.size:
        return False
    return image.ndim == 2 or image.shape[2:] in {(3,), (4,)}


def _picture_or_tensor(image: object, name: str) -> Image.Image | Tensor:
    if isinstance(image, Image.Image):
        return image
    if _is_picture(image):
        return Image.fromarray(image)
    if isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.dtype.kind in "iufb":
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        kind = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"{name} is a {kind}; give paths, PIL images, uint8 arrays (H, W, 3) or tensors (C, H, W)")
    if not image.is_floating_point() and not image.is_complex():
        raise UsageError(
            f"{name} is a {image.dtype} tensor; give what the network receives, such as x.float() / 255, normalised,"
            " or PIL images"
        )
    if image.ndim != 3 or image.numel() == 0 or image.is_complex():
        raise UsageError(f"{name} is a {image.dtype} tensor of shape {tuple(image.shape)}; give (C, H, W)")
    return image.detach().to("cpu", torch.float32)


def _batch(images: Sequence[tuple[int, str, Tensor]]) -> Batch:
    indices, names, inputs = zip(*images, strict=True)
    return Batch(names, torch.stack(inputs), indices)


def picture_note(channels: int) -> str | None:
    """Return how ``to_uint8`` shows images of so many channels, or None where that is plain."""
    if channels in {1, 3}:
        return None
    kept = "grey mean of the 2 channels" if channels == 2 else f"first three of the {channels} channels"
    return f"pictures show the {kept}; the numbers are those of all channels"


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Return pixels ``(C, H, W)`` clipped to ``[0, 1]`` as 8 bits ``(H, W, 3)``, three channels or a mean."""
    if pixels.ndim != 3 or pixels.numel() == 0:
        raise UsageError(f"pixels have shape {tuple(pixels.shape)}; expected (C, H, W)")
    if not torch.isfinite(pixels).all():
        raise UsageError("pixels hold NaN or infinite values; a picture needs numbers")
    pixels = pixels.detach().to("cpu", torch.float64)
    pixels = pixels[:3] if len(pixels) >= 3 else pixels.mean(0, keepdim=True)
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def save_image(pixels: Tensor, path: str | Path) -> None:
    """Write pixels as ``to_uint8`` shows them to a ``.png``, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot write {display_name(path)}; its name ends in .png")
    encoded = io.BytesIO()
    Image.fromarray(to_uint8(pixels)).save(encoded, "PNG")
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def psnr(reference: Tensor, estimate: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels of one image ``(C, H, W)`` with pixels in ``[0, 1]``.

    By scikit-image, with the estimate clipped to ``[0, 1]`` first. Infinite where the images are equal.
    """
    a, b = _comparable(reference, estimate)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(a, b, data_range=1.0))


def ssim(reference: Tensor, estimate: Tensor) -> float:
    """Return the structural similarity of one image ``(C, H, W)`` with pixels in ``[0, 1]``; 1 where equal.

    By scikit-image with its default uniform 7x7 window, the mean over the channels, with the estimate clipped first.
    On an image with a side below 7 the window is the largest odd one that fits; NaN where none does (below 3).
    """
    a, b = _comparable(reference, estimate)
    window = min(7, *a.shape[:2])
    window -= 1 - window % 2
    if window < 3:
        return float("nan")
    return float(structural_similarity(a, b, win_size=window, channel_axis=2, data_range=1.0))  # pyright: ignore


def quality(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``psnr`` and ``ssim`` of each image of a batch ``(N, C, H, W)``, as float64 of shape ``(N,)``."""
    shapes = tuple(reference.shape), tuple(estimate.shape)
    if reference.ndim != 4 or shapes[0] != shapes[1]:
        raise UsageError(f"images have shapes {shapes[0]} and {shapes[1]}; expected equal (N, C, H, W)")
    pairs = list(zip(reference, estimate, strict=True))
    decibels = torch.tensor([psnr(a, b) for a, b in pairs], dtype=torch.float64)
    return decibels, torch.tensor([ssim(a, b) for a, b in pairs], dtype=torch.float64)


def _comparable(reference: Tensor, estimate: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if reference.ndim != 3 or reference.shape != estimate.shape or reference.numel() == 0:
        raise UsageError(
            f"images have shapes {tuple(reference.shape)} and {tuple(estimate.shape)}; expected equal (C, H, W)"
        )
    a, b = (x.detach().to("cpu", torch.float64).permute(1, 2, 0).numpy() for x in (reference, estimate))
    return a, np.clip(b, 0.0, 1.0)
