"""The architecture as it was traced."""

import json

from unconv.paper import fig1


def test_every_stage_is_listed_and_drawn(subject):
    result = fig1.run(subject)
    json.dumps(result, allow_nan=False)
    assert [stage["layer"] for stage in result["ours"]] == ["c11", "c12", "c21", "c22", "c31"]
    assert result["ours"][1]["kind"] == "conv+relu+maxpool"
    words = " ".join(text.get_text() for text in fig1.draw(result).axes[0].texts)
    assert all(stage["layer"] in words for stage in result["ours"])
    header, rows = fig1.table(result)
    assert all(len(row) == len(header) for row in rows)
