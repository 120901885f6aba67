"""How results show themselves in a notebook: small escaped tables, and pictures as data URIs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

from unconv.io import one_line

EDGE = 128  # pixels: smaller pictures are shown enlarged


def grid(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a header; cells are escaped, except for what ``picture`` gave."""
    head = "".join(f"<th>{_text(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def picture(image: Image.Image, alt: str) -> Markup:
    """Return an ``img`` of a picture."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    factor = max(1, EDGE // max(image.size))
    width, height = (factor * n for n in image.size)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return Markup(f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">')


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
