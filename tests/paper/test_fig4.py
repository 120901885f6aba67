"""Figure 4: the sheet's rows, its errors against a recomputation, and its refusal without a decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unconv.errors import UnconvError
from unconv.images import to_uint8
from unconv.paper import fig4


def test_the_sheet(context, decoders):
    result = fig4.run(context, decoders, shown=3)
    pictures = result.pop("pictures")
    json.dumps(result, allow_nan=False)
    assert list(pictures) == ["1"]
    assert pictures["1"].shape == (5, 3, 16, 16, 3)
    originals = torch.cat([batch.inputs for batch in context.images])
    pixels = context.preprocess.to_pixels(originals).clamp(0, 1)
    assert all(np.array_equal(row, to_uint8(p)) for row, p in zip(pictures["1"][0], pixels, strict=True))
    rows = result["ours"]["1"]["images"]
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(3)]
    header, table = next(iter(fig4.tables(result).values()))
    assert all(len(row) == len(header) for row in table)
    assert any(note.startswith("Macro layer 2: 7 has no decoder") for note in result["notes"])


def test_fewer_images_than_a_batch(context, decoders):
    result = fig4.run(context, decoders, shown=1)
    assert result["pictures"]["1"].shape[1] == 1
    assert len(result["ours"]["1"]["images"]) == 1


def test_every_row_is_labelled(context, decoders):
    result = fig4.run(context, decoders)
    figure = fig4.draw(result)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.partition("\n(")[0] for label in labels] == list(fig4.ROWS.values())
    mean = np.mean([row["relative_error"]["learned"] for row in result["ours"]["1"]["images"]])
    assert f"({mean:.2f})" in labels[2]


def test_without_a_decoder_it_says_how_to_make_one(context):
    with pytest.raises(UnconvError, match="2 has no decoder; make one with unconv train-decoder"):
        fig4.run(context, {})
