"""Pictures as data URIs, as many as a number of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from unconv.errors import UnconvError

EDGE = 256  # pixels of the longer side, at most
LOSSLESS = 96  # pixels up to which a picture is PNG, so that every pixel stays as it is
QUALITY = 85  # of a JPEG


@dataclass
class EmbeddedImages:
    """The pictures that go into a page."""

    uris: dict[str, str] = field(default_factory=dict)  # data URI by path
    unread: dict[str, str] = field(default_factory=dict)  # reason by path, for files that are no readable picture
    images: int = 0  # how many of the images are in, from the first on; that one always


def embed_images(run: Path, images: Sequence[Sequence[str]], budget: int) -> EmbeddedImages:
    """Encode as many images as fit, each (original first) with all its pictures."""
    result, used = EmbeddedImages(), 0
    for paths in images:
        new: dict[str, str] = {}
        for path in paths:
            try:
                new[path] = data_uri(load(run, path, EDGE))
            except UnconvError as error:
                result.unread[path] = str(error)
        used += sum(map(len, new.values()))
        if used > budget and result.images:
            return result
        result.uris |= new
        result.images += 1
    return result


def data_uri(picture: Image.Image) -> str:
    """Return an RGB picture as PNG up to 96 pixels, where every pixel counts, and as JPEG above."""
    buffer = io.BytesIO()
    kind = "png" if max(picture.size) <= LOSSLESS else "jpeg"
    picture.save(buffer, kind, optimize=True, quality=QUALITY)
    return encode(buffer.getvalue(), f"image/{kind}")


def encode(content: bytes, kind: str) -> str:
    """Return bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def load(run: Path, path: str, edge: int | None = None) -> Image.Image:
    """Return a picture of the run directory in RGB, its longer side at most ``edge``; UnconvError if it is none."""
    try:
        file = (run / path).resolve()
        if not file.is_relative_to(run.resolve()):
            raise UnconvError("lies outside of the run directory")
        with Image.open(file) as opened:
            if edge is not None:
                opened.draft("RGB", (2 * edge, 2 * edge))
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UnconvError("is not there") from None
    except UnidentifiedImageError:
        raise UnconvError("is not a picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnconvError(f"cannot be read ({type(error).__name__})") from error
    if edge is not None:
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return picture
