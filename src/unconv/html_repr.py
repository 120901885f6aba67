"""How results show themselves in a notebook: small escaped tables, and pictures as data URIs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from unconv.io import one_line

TILES = 32
EDGE = 128  # pixels: smaller pictures are shown enlarged


def grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a header; cells are escaped, except for what ``picture`` and ``mosaic`` gave."""
    head = "".join(f"<th>{_text(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def is_picture(values: Tensor) -> bool:
    """Return whether a batch can be looked at: ``(N, C, H, W)`` with one or three channels, and not empty."""
    return values.ndim == 4 and values.shape[1] in {1, 3} and values.numel() > 0


def picture(pixels: Tensor, alt: str, style: str = "") -> Markup:
    """Return an ``img`` of pixels ``(C, H, W)``, one or three channels, clipped to ``[0, 1]``; NaN is black."""
    from PIL import Image  # only a notebook needs it

    values = pixels.detach().to("cpu", torch.float64).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    image = Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    factor = max(1, EDGE // max(image.size))
    width, height = (factor * n for n in image.size)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    style = f' style="{style}"' if style else ""
    return Markup(
        f'<img alt="{escape(alt)}" width="{width}" height="{height}"{style} src="data:image/png;base64,{data}">'
    )


def mosaic(tiles: Tensor, alt: str) -> Markup:
    """Return an ``img`` of the first 32 tiles ``(T, C, H, W)``, each scaled from its smallest to its largest value."""
    shown = stretched(tiles[:TILES].detach().to("cpu", torch.float64))
    count, channels, height, width = shown.shape
    columns = min(count, 8)
    lines = -(-count // columns)
    sheet = torch.ones(lines * columns, channels, height + 1, width + 1, dtype=torch.float64)
    sheet[:count, :, :height, :width] = shown
    sheet = sheet.reshape(lines, columns, channels, height + 1, width + 1).permute(2, 0, 3, 1, 4)
    sheet = sheet.reshape(channels, lines * (height + 1), columns * (width + 1))
    return picture(sheet, alt, "image-rendering:pixelated")


def stretched(batch: Tensor) -> Tensor:
    """Return pictures, the smallest value of each 0 and the largest 1; a flat one becomes 0. Shape ``(N, C, H, W)``."""
    low = batch.amin(dim=(1, 2, 3), keepdim=True)
    span = batch.amax(dim=(1, 2, 3), keepdim=True) - low
    return (batch - low) / torch.where(span > 0, span, 1.0)


def escape(text: str) -> str:
    """Return text as HTML; what does not print (terminal escapes, marks that reverse the direction) is spelled out."""
    return html.escape(one_line(text))


def _text(value: object) -> str:
    if isinstance(value, Markup):
        return value
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple | list) and all(isinstance(n, int) for n in value):
        return " × ".join(map(str, value))
    return escape(str(value))
