"""Figure 4: the sheet's rows and their errors, by a trained decoder where there is one."""

from pathlib import Path

import numpy as np
import torch

from unconv.images import to_uint8
from unconv.paper import fig4


def test_the_sheet(context, decoders):
    result = fig4.run(context, decoders, shown=3)
    pictures = result["pictures"]
    assert {number: sheet.shape for number, sheet in pictures.items()} == {
        "1": (5, 3, 16, 16, 3),
        "2": (4, 3, 16, 16, 3),  # no learned filters
    }
    assert [layer["kind"] for layer in result["ours"].values()] == ["trained", "linear_switches"]
    originals = torch.cat([batch.inputs for batch in context.images])
    pixels = context.network.preprocess.to_pixels(originals).clamp(0, 1)
    assert all(np.array_equal(row, to_uint8(p)) for row, p in zip(pictures["1"][0], pixels, strict=True))
    rows = result["ours"]["1"]["images"]
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(3)]
    labels = [label.get_text() for label in fig4.draw(result).axes[0].get_yticklabels()]
    assert [label.partition("\n(")[0] for label in labels] == list(fig4.ROWS.values())
    mean = np.mean([row["relative_error"]["learned"] for row in rows])
    assert f"({mean:.2f})" in labels[2]
