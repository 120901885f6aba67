"""Model-RIP of a late layer: which one, for which codes."""

from dataclasses import replace

import pytest

from unconv.paper import fig3


def test_the_last_block_that_reads_an_unpooled_one(context):
    assert fig3.choose_layer(context) == "7"
    assert fig3.choose_layer(replace(context, names=("0",))) == "0"


def test_rows(context):
    result = fig3.run(context, samples=200, recovered=2, steps=30)
    ours = result["ours"]
    ratios = ours["ratios"]
    assert list(ratios) == list(fig3.ROWS)
    assert ratios["gaussian, full"]["p50"] == pytest.approx(1, abs=0.1)
    assert ratios["random codes, cropped"]["p50"] < ratios["random codes"]["p50"]
    assert ratios["codes after ReLU"]["samples"] == 2
    assert ours["k"] == round(ours["share"] * ours["regions"])


def test_lambda_decides_how_much_is_fitted(context):
    result = fig3.run(context, samples=20, recovered=2, steps=300, fractions=(0.05, 0.5))
    sweep = {(one["codes"], one["fraction"]): one for one in result["ours"]["lambda"]}
    assert len(sweep) == 6
    for row in ("codes before ReLU", "codes before ReLU, centred", "codes after ReLU"):
        fine, coarse = sweep[row, 0.05], sweep[row, 0.5]
        assert fine["images"] == coarse["images"] == 2
        assert 0 < fine["error"] < coarse["error"] < 1
        assert (fine["constant"] < 1e-9) == row.endswith("centred")
        assert fine["ratio"] == pytest.approx(result["ours"]["ratios"][row]["mean"])
    assert "does not give its lambda" in "".join(result["notes"])
