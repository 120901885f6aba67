"""What a notebook shows: escaped, small, and pictures where there is something to look at."""

import base64
import io
import re

import torch
from PIL import Image

from unconv import html_repr
from unconv.images import to_uint8


def test_text_is_escaped_and_markup_is_not():
    html = html_repr.grid(("<b>", "shape", "error", "none"), [("a & b", (3, 4), 0.12345, None)])
    assert "<b>" not in html
    for text in ("&lt;b&gt;", "a &amp; b", "3 × 4", "0.123<", "–"):
        assert text in html
    assert "<i>x</i>" in html_repr.grid(("t",), [(html_repr.Markup("<i>x</i>"),)])


def test_a_picture_holds_its_pixels():
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    shown = Image.fromarray(to_uint8(pixels))
    html = html_repr.picture(shown, 'say "x"')
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (4, 5)
    assert image.getpixel((1, 2)) == tuple((255 * pixels[:, 2, 1]).round().int().tolist())
    assert "&quot;x&quot;" in html
