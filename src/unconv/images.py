"""Images in and out: finding, reading, batching, writing and comparing them."""

from __future__ import annotations

import copy
import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from unconv.errors import UnconvError, UsageError
from unconv.io import replacing

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# content decides, not the extension; a closed list keeps out formats that Pillow hands to other programs (EPS)
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
# errors of the machine, not of one image: going on would record every further image as bad
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def display_name(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> str:
    r"""A file's name as one printable line, different for different names.

    Bytes that are not UTF-8 become ``\xNN``, other characters that do not print (newlines, terminal escapes,
    marks that reverse the direction of text) ``\n``, ``\x1b``, ``\u202e``, and a backslash is doubled. Markup is
    left alone: whoever writes a page escapes it.

    Args:
        path: The file.
        root: Folder that the name is relative to, where the file lies in it.

    Returns:
        The name, with ``/`` between folders.
    """
    path = Path(path)
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    # a doubled backslash keeps a name that spells an escape apart from the one that holds the character
    return one_line(path.as_posix().replace("\\", "\\\\"))


def one_line(text: str) -> str:
    """Text as one printable line, escaped as ``display_name`` does; a line that prints stays as it is.

    Args:
        text: Any text, undecodable bytes as surrogates.

    Returns:
        The text with everything escaped that does not print.
    """
    return "".join(map(_printable, text))


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    if 0xDC80 <= ord(char) <= 0xDCFF:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Every file (and link, and folder) below a folder that has the name of an image.

    What cannot be read later is not filtered here, so that it is named when it is skipped; folders that cannot be
    listed are in the list for the same reason. Links to folders are not followed.

    Args:
        source: A folder, a file, or several of them. Files given by name may have any extension.

    Returns:
        Paths without repetitions, ordered by the bytes of each folder's and file's name.

    Raises:
        UsageError: If a folder or file does not exist.
        UnconvError: If there is no image, or a given folder cannot be listed.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    found: set[Path] = set()
    for item in map(Path, sources):
        try:
            is_folder = stat.S_ISDIR(os.stat(item).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise UsageError(f"no folder or file {display_name(item)}; give a folder of images") from error
        except OSError as error:
            raise UnconvError(f"cannot read {display_name(item)}: {_reason(error)}") from error
        found |= set(_walk(item)) if is_folder else {item}
    if not found:
        where = ", ".join(display_name(item) for item in sources) or "an empty list"
        raise UnconvError(f"no images in {where}; files with these extensions are looked for: {' '.join(EXTENSIONS)}")
    return sorted(found, key=lambda path: [os.fsencode(part) for part in path.parts])


def _walk(top: Path) -> Iterator[Path]:
    failed: list[OSError] = []
    for folder, folders, files in os.walk(top, onerror=failed.append):
        yield from (Path(folder, name) for name in (*folders, *files) if name.lower().endswith(EXTENSIONS))
    for error in failed:
        if error.filename is None or Path(error.filename) == top:
            raise UnconvError(f"cannot list {display_name(top)}: {_reason(error)}") from error
        yield Path(error.filename)


def sample_photographs() -> list[Path]:
    """The photographs that scikit-image carries inside its package, for the demo: nothing is downloaded.

    Returns:
        Four colour photographs without copyright restrictions: an astronaut, a cat, a cup of coffee, a rocket.

    Raises:
        UnconvError: If the installed scikit-image does not hold them.
    """
    folder = Path(str(resources.files("skimage") / "data"))
    missing = [name for name in SAMPLES if not (folder / name).is_file()]
    if missing:
        raise UnconvError(f"the installed scikit-image carries no {', '.join(missing)}; give a folder with --images")
    return [folder / name for name in SAMPLES]


def read_image(path: str | os.PathLike[str]) -> tuple[Image.Image, str | None]:
    """Read one image of any kind as RGB with 8 bits per channel.

    EXIF rotation is applied, transparency is laid on white, 16 bits per channel are rounded to 8, and of an
    animation the first frame is taken.

    Args:
        path: The file; its content decides the format, not its extension.

    Returns:
        The image, and a note where not all of the file was used, otherwise ``None``.

    Raises:
        UnconvError: If it cannot be read; the message is the reason, without the file's name.
        OSError: If the machine fails rather than the file (too many open files, a lost mount).
    """
    try:
        _check_is_file(Path(path))
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            # Pillow only warns between its limit and twice that
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                image.load()
                rgb = _to_rgb(_upright(image))
                frames = _count_frames(image)
    except UnconvError:
        raise
    except Exception as error:
        # Pillow's decoders raise almost anything on malformed files: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and (error.errno in MACHINE_ERRORS or _is_gone(Path(path), error)):
            raise
        raise UnconvError(_reason(error)) from error
    return rgb, f"first of {frames} frames" if frames > 1 else None


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


def _is_gone(path: Path, error: OSError) -> bool:
    # the file is missing because its whole folder is
    return isinstance(error, FileNotFoundError) and not path.parent.is_dir()


def _count_frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:
        # damage behind the first frame, which was read
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # malformed EXIF data say nothing about the pixels, which were read
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
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


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read (JPEG, PNG, BMP, GIF, TIFF, WebP, PPM)"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror[:1].lower() + error.strerror[1:]
    return one_line(f"damaged: {error}" if str(error) else f"damaged: {type(error).__name__}")[:200]


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out.

    Attributes:
        file: Its name, as ``display_name`` shows it.
        reason: Why, in one line.
    """

    file: str
    reason: str


@dataclass(frozen=True)
class NotedImage:
    """An image that was used in part.

    Attributes:
        file: Its name, as ``display_name`` shows it.
        note: What was left out of it, in one line.
    """

    file: str
    note: str


@dataclass(frozen=True)
class Batch:
    """Images of one size, prepared for a network.

    Attributes:
        names: File names, as ``display_name`` shows them.
        inputs: Shape ``(N, C, H, W)``, float32.
        indices: Place of each image in the list of paths.
    """

    names: tuple[str, ...]
    inputs: Tensor
    indices: tuple[int, ...]


class ImageStream:
    """Batches of prepared images, in order and in constant memory; it can be run through many times.

    A batch is closed when it is full or when the next image has another size, so the order of the paths is the
    order of the images. What cannot be read is skipped, by name and with its reason.

    Attributes:
        paths: The files.
        first: Index of the first of them.
        skipped: What the last pass, so far, left out.
        noted: What the last pass, so far, used only in part.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int = 8,
        *,
        root: str | Path | None = None,
        min_size: int = 1,
        need_one: bool = True,
    ) -> None:
        """Describe the stream; nothing is read yet.

        Args:
            paths: The files.
            preprocess: From an RGB PIL image to a tensor of shape ``(C, H, W)``.
            batch_size: Largest number of images in a batch.
            root: Folder that names are relative to.
            min_size: Smallest height and width, in pixels after preprocessing, that the network can take.
            need_one: Whether a pass without a single usable image is an error; not so for what is left of a run.

        Raises:
            ValueError: If ``batch_size`` or ``min_size`` is less than 1.
        """
        if batch_size < 1 or min_size < 1:
            raise ValueError(f"batch_size is {batch_size} and min_size {min_size}; both are at least 1")
        self.paths = [Path(path) for path in paths]
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.root = root
        self.min_size = min_size
        self.need_one = need_one
        self.first = 0
        self.skipped: list[SkippedImage] = []
        self.noted: list[NotedImage] = []

    def __len__(self) -> int:
        return len(self.paths)

    def blocks(self) -> list[range]:
        """The indices of the images, so many at a time as fit into a batch.

        Where a block begins is decided by its place alone: not by what can be read of the images before it, nor by
        who reads it.

        Returns:
            Ranges in order.
        """
        ends = self.first + len(self.paths)
        return [range(i, min(i + self.batch_size, ends)) for i in range(self.first, ends, self.batch_size)]

    def block(self, indices: range) -> ImageStream:
        """The same images, but only some of them; a pass without a single usable one is no error.

        Args:
            indices: Which, from ``blocks``.

        Returns:
            A stream of its own.
        """
        part = copy.copy(self)
        part.paths = self.paths[indices.start - self.first : indices.stop - self.first]
        part.first, part.need_one, part.skipped, part.noted = indices.start, False, [], []
        return part

    def __iter__(self) -> Iterator[Batch]:
        """Run through the images.

        Yields:
            Batches.

        Raises:
            UnconvError: If every image was skipped, or the machine, not an image, fails.
        """
        self.skipped, self.noted = [], []
        waiting: list[tuple[int, str, Tensor]] = []
        for index, path in enumerate(self.paths, self.first):
            name = display_name(path, self.root)
            try:
                x = self._prepare(path, name)
            except UnconvError as error:
                self.skipped.append(SkippedImage(name, one_line(str(error))))
                continue
            except OSError as error:
                raise UnconvError(f"cannot go on reading images at {name}: {_reason(error)}") from error
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
            first = f"; the first, {self.skipped[0].file}: {self.skipped[0].reason}" if self.skipped else ""
            raise UnconvError(f"none of the {len(self.paths)} images could be used{first}")

    def _prepare(self, path: Path, name: str) -> Tensor:
        image, note = read_image(path)
        try:
            x = self.preprocess(image)
        except (MemoryError, RuntimeError) as error:
            # torch says with a RuntimeError that there is no memory left
            raise UnconvError(f"{image.width}x{image.height} pixels cannot be prepared: {_reason(error)}") from error
        height, width = x.shape[-2:]
        if min(height, width) < self.min_size:
            raise UnconvError(
                f"{width}x{height} pixels after preprocessing; "
                f"the network takes {self.min_size}x{self.min_size} and larger"
            )
        if note is not None:
            self.noted.append(NotedImage(name, note))
        return x


def _batch(images: Sequence[tuple[int, str, Tensor]]) -> Batch:
    indices, names, inputs = zip(*images, strict=True)
    return Batch(names, torch.stack(inputs), indices)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels rounded to 8 bits, clipped to the range.

    Args:
        pixels: Shape ``(C, H, W)`` with one or three channels, in ``[0, 1]``.

    Returns:
        Shape ``(H, W, 3)``, uint8; grey is repeated.

    Raises:
        ValueError: If the shape is another one, or a value is NaN or infinite.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in {1, 3} or pixels.numel() == 0:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected (3, H, W) or (1, H, W)")
    if not torch.isfinite(pixels).all():
        raise ValueError("pixels hold NaN or infinite values; a picture needs numbers")
    scaled = pixels.detach().to("cpu", torch.float64).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def save_image(pixels: Tensor, path: str | Path) -> None:
    """Write a picture; the file appears whole or not at all.

    Args:
        pixels: Shape ``(3, H, W)`` or ``(1, H, W)``, in ``[0, 1]``; values outside are clipped.
        path: File to write; ``.png`` (exact) or ``.jpg`` / ``.jpeg``. Its folder exists.

    Raises:
        ValueError: If the suffix is another one, or the pixels are no picture.
        UnconvError: If the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in {".png", ".jpg", ".jpeg"}:
        raise ValueError(f"cannot write {display_name(path)}; its name ends in .png, .jpg or .jpeg")
    image = Image.fromarray(to_uint8(pixels))
    # encoded in memory: where a disk is full, Pillow's JPEG encoder says so without the reason
    encoded = io.BytesIO()
    if suffix == ".png":
        image.save(encoded, "PNG")
    else:
        image.save(encoded, "JPEG", quality=92, subsampling=0)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise UnconvError(cannot_write(path, error)) from error


def cannot_write(path: str | os.PathLike[str], error: OSError) -> str:
    """What to say when a file or folder cannot be written.

    Args:
        path: The file or folder.
        error: What the machine said.

    Returns:
        One line: what failed, why, and what would help.
    """
    help_ = "make room there and run the same command again" if error.errno in NO_ROOM else "make it writable"
    return f"cannot write {display_name(path)}: {_reason(error)}; {help_}, or choose another directory with --out"


def psnr(reference: Tensor, estimate: Tensor) -> float:
    """Peak signal-to-noise ratio of one image, by scikit-image with ``data_range=1``.

    Args:
        reference: Pixels in ``[0, 1]``. Shape ``(C, H, W)``.
        estimate: Pixels, clipped to ``[0, 1]`` first. Same shape.

    Returns:
        Decibels; infinite where the images are equal, NaN where the estimate holds NaN.

    Raises:
        ValueError: If the shapes differ or are no image.
    """
    a, b = _comparable(reference, estimate)
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(a, b, data_range=1.0))


def ssim(reference: Tensor, estimate: Tensor) -> float:
    """Structural similarity of one image, by scikit-image with its default uniform 7x7 window and ``data_range=1``.

    Args:
        reference: Pixels in ``[0, 1]``. Shape ``(C, H, W)``.
        estimate: Pixels, clipped to ``[0, 1]`` first. Same shape.

    Returns:
        At most 1, the mean over the channels. On an image with a side below 7 the window is the largest odd one
        that fits; NaN where none does (a side below 3) or the estimate holds NaN.

    Raises:
        ValueError: If the shapes differ or are no image.
    """
    a, b = _comparable(reference, estimate)
    window = min(7, *a.shape[:2])
    window -= 1 - window % 2
    if window < 3:
        return float("nan")
    return float(structural_similarity(a, b, win_size=window, channel_axis=2, data_range=1.0))  # pyright: ignore


def quality(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR and SSIM of each image of a batch.

    Args:
        reference: Pixels in ``[0, 1]``. Shape ``(N, C, H, W)``.
        estimate: Pixels, clipped to ``[0, 1]`` first. Same shape.

    Returns:
        PSNR in decibels and SSIM. Shape ``(N,)`` each, float64, on the CPU.

    Raises:
        ValueError: If the shapes differ or are no batch of images.
    """
    if reference.ndim != 4 or reference.shape != estimate.shape:
        raise ValueError(
            f"images have shapes {tuple(reference.shape)} and {tuple(estimate.shape)}; expected equal NCHW"
        )
    pairs = list(zip(reference, estimate, strict=True))
    decibels = torch.tensor([psnr(a, b) for a, b in pairs], dtype=torch.float64)
    return decibels, torch.tensor([ssim(a, b) for a, b in pairs], dtype=torch.float64)


def _comparable(reference: Tensor, estimate: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if reference.ndim != 3 or reference.shape != estimate.shape or reference.numel() == 0:
        raise ValueError(
            f"images have shapes {tuple(reference.shape)} and {tuple(estimate.shape)}; expected equal (C, H, W)"
        )
    a, b = (x.detach().to("cpu", torch.float64).permute(1, 2, 0).numpy() for x in (reference, estimate))
    return a, np.clip(b, 0.0, 1.0)
