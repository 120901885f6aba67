"""The architecture as it was traced."""

import json

from unconv.paper import fig1


def test_every_stage_is_listed_and_drawn(context):
    result = fig1.run(context)
    json.dumps(result, allow_nan=False)
    assert [row["layer"] for row in result["ours"]] == ["c11", "c12", "c21", "c22", "c31"]
    assert result["ours"][1]["kind"] == "conv+relu+maxpool"
    words = " ".join(text.get_text() for text in fig1.draw(result).axes[0].texts)
    assert all(row["layer"] in words for row in result["ours"])
    header, rows = next(iter(fig1.tables(result).values()))
    assert all(len(row) == len(header) for row in rows)
