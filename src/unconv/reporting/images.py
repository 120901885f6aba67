"""Pictures as data URIs, as large as a number of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from unconv.errors import UnconvError

EDGES = (512, 448, 384, 320, 288, 256, 224, 192, 160, 128)
LOSSLESS = 96
SAMPLE = 16
QUALITY = 85
ROOM = 1.08


@dataclass(frozen=True)
class Gallery:
    """The pictures that go into a page.

    Attributes:
        uris: Data URI by path.
        unread: Reason by path, for files that are no readable picture.
        images: How many of the images are in, from the first on.
        partial: Number of pictures of those images that did not fit.
        edge: No picture's longer side has more pixels than this.
    """

    uris: dict[str, str]
    unread: dict[str, str]
    images: int
    partial: int
    edge: int


def gallery(run: Path, images: Sequence[Sequence[str]], budget: int) -> Gallery:
    """Encode as many images as fit, each with all its pictures, at the largest size that lets all of them fit.

    Args:
        run: Directory that the paths are relative to.
        images: Paths of each image's pictures, the original first.
        budget: Number of bytes that all data URIs together may take.

    Returns:
        The pictures. At the smallest size the last images are left out where they do not fit; the first image is
        in even if only a part of its pictures fits.
    """
    edge = _edge(run, [path for paths in images for path in paths], budget)
    uris: dict[str, str] = {}
    unread: dict[str, str] = {}
    used = shown = partial = 0
    for paths in images:
        new: dict[str, str] = {}
        size = 0
        for path in paths:
            try:
                uri = data_uri(load(run, path, edge))
            except UnconvError as error:
                unread[path] = str(error)
                continue
            if used + size + len(uri) > budget:
                if shown:
                    return Gallery(uris, unread, shown, partial, edge)
                partial += 1
                continue
            new[path] = uri
            size += len(uri)
        uris |= new
        used += size
        shown += 1
    return Gallery(uris, unread, shown, partial, edge)


def data_uri(picture: Image.Image) -> str:
    """A picture as PNG up to 96 pixels, where every pixel counts, and as JPEG above.

    Args:
        picture: The picture, in RGB.

    Returns:
        The data URI.
    """
    buffer = io.BytesIO()
    if max(picture.size) <= LOSSLESS:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def load(run: Path, path: str, edge: int) -> Image.Image:
    """One picture in RGB, upright, and not larger than it has to be.

    Args:
        run: Directory that the path is relative to.
        path: The picture; it must lie inside the run directory.
        edge: Largest length of the longer side, in pixels.

    Returns:
        The picture.

    Raises:
        UnconvError: If there is no readable picture there.
    """
    try:
        file = (run / path).resolve()
        if not file.is_relative_to(run.resolve()):
            raise UnconvError("lies outside of the run directory")
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * edge, 2 * edge))
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UnconvError("is not there") from None
    except UnidentifiedImageError:
        raise UnconvError("is not a picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnconvError(f"cannot be read ({type(error).__name__})") from error
    picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return picture


def _edge(run: Path, paths: Sequence[str], budget: int) -> int:
    # the largest size at which all pictures probably fit, judged by a sample
    sample = []
    for path in [paths[i * len(paths) // SAMPLE] for i in range(SAMPLE)] if len(paths) > SAMPLE else paths:
        try:
            sample.append(load(run, path, EDGES[0]))
        except UnconvError:
            continue
    for edge in EDGES:
        for picture in sample:
            picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        if sum(len(data_uri(picture)) for picture in sample) * len(paths) * ROOM <= budget * max(1, len(sample)):
            return edge
    return EDGES[-1]
