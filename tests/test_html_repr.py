"""What a notebook shows: escaped, small, and pictures where there is something to look at."""

import base64
import io
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from unconv import html_repr
from unconv.block_extraction import find_conv_blocks
from unconv.solvers.solution import Solution
from unconv.sparsity import Pooled, TopK


@pytest.fixture
def stages():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(5, 3, 2))
    return find_conv_blocks(net, torch.zeros(1, 3, 8, 8))


def pictures(html):
    """The decoded pictures of a piece of HTML."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_text_is_escaped_and_markup_is_not():
    html = html_repr.table({"<b>": "a & b", "shape": (3, 4), "error": 0.12345, "none": None})
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "a &amp; b" in html
    assert "3 × 4" in html
    assert "0.123<" in html
    assert "–" in html
    assert "<i>x</i>" in html_repr.grid(("t",), [(html_repr.Markup("<i>x</i>"),)])


def test_a_picture_holds_its_pixels():
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    (image,) = pictures(html_repr.picture(pixels, 'say "x"'))
    assert image.size == (4, 5)
    assert image.getpixel((1, 2)) == tuple((255 * pixels[:, 2, 1]).round().int().tolist())
    assert "&quot;x&quot;" in html_repr.picture(pixels, 'say "x"')


def test_a_mosaic_sets_tiles_in_rows_of_eight():
    (image,) = pictures(html_repr.mosaic(torch.rand(11, 1, 3, 3), "tiles"))
    assert image.size == (8 * 4, 2 * 4)
    (many,) = pictures(html_repr.mosaic(torch.zeros(100, 3, 2, 2), "tiles"))
    assert many.size == (8 * 3, 4 * 3)


def test_codes(stages):
    code = stages.get("0").encode(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    html = code._repr_html_()
    assert "5 × 4 × 4" in html
    assert "max-pooled" in html
    assert len(pictures(html)) == 1
    flat = TopK(2).project(torch.randn(1, 2, 9))
    assert not pictures(flat._repr_html_())
    assert Pooled(2).project(torch.zeros(0, 2, 4, 4))._repr_html_().startswith("<table>")


def test_stages(stages):
    html = stages.get("0")._repr_html_()
    assert "conv+relu+maxpool" in html
    assert len(pictures(html)) == 1
    named = replace(stages.get("0"), name="<script>")
    assert "<script>" not in named._repr_html_()
    assert "transposed convolution" in stages._repr_html_()


def test_solutions():
    history = torch.tensor([[1.0, 1.0], [0.5, 0.25]])
    image = Solution(torch.randn(2, 3, 4, 4), history, ("converged", "max_steps"))
    html = image._repr_html_()
    assert "1 converged, 1 max_steps" in html
    assert "0.25 to 0.5" in html
    assert len(pictures(html)) == 1
    assert not pictures(Solution(TopK(1).project(torch.ones(2, 3)), history, ("converged",) * 2)._repr_html_())
