"""The architecture as it was traced."""

from unconv.paper import fig1


def test_every_block_is_listed_and_drawn(context):
    result = fig1.run(context)
    assert [row["layer"] for row in result["ours"]] == ["c11", "c12", "c21", "c22", "c31"]
    assert result["ours"][1]["kind"] == "conv+relu+maxpool"
    words = " ".join(text.get_text() for text in fig1.draw(result).axes[0].texts)
    assert all(row["layer"] in words for row in result["ours"])
