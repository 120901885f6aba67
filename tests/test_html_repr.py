"""What a notebook shows: escaped, small, and pictures where there is something to look at."""

import base64
import io
import re

import torch
from PIL import Image

from unconv import html_repr
from unconv.images import to_uint8


def pictures(html):
    """The decoded pictures of a piece of HTML."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_text_is_escaped_and_markup_is_not():
    html = html_repr.grid(("<b>", "shape", "error", "none"), [("a & b", (3, 4), 0.12345, None)])
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html
    assert "3 × 4" in html
    assert "0.123<" in html
    assert "–" in html
    assert "<i>x</i>" in html_repr.grid(("t",), [(html_repr.Markup("<i>x</i>"),)])


def test_a_picture_holds_its_pixels():
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    shown = Image.fromarray(to_uint8(pixels))
    (image,) = pictures(html_repr.picture(shown, 'say "x"'))
    assert image.size == (4, 5)
    assert image.getpixel((1, 2)) == tuple((255 * pixels[:, 2, 1]).round().int().tolist())
    assert "&quot;x&quot;" in html_repr.picture(shown, 'say "x"')
