"""Model-RIP of a late layer: which one, for which codes."""

import json
from dataclasses import replace

import pytest

from unconv.experiments import fig3


def test_the_last_stage_that_reads_an_unpooled_one(subject):
    assert fig3.choose_stage(subject) == "7"
    assert fig3.choose_stage(replace(subject, names=("0",))) == "0"


def test_document(subject):
    result = fig3.run(subject, samples=200, recovered=2, steps=30)
    json.dumps(result, allow_nan=False)
    ours = result["ours"]
    ratios = ours["ratios"]
    assert list(ratios) == list(fig3.ROWS)
    assert ratios["gaussian, full"]["p50"] == pytest.approx(1, abs=0.1)
    assert ratios["random codes, cropped"]["p50"] < ratios["random codes"]["p50"]
    assert ratios["codes after ReLU"]["samples"] == 2
    assert ours["k"] == round(ours["share"] * ours["regions"])
    header, rows = fig3.table(result)
    assert all(len(row) == len(header) for row in rows)
    fig3.draw(result)


def test_without_algorithm_2(subject):
    ratios = fig3.run(subject, samples=20, recovered=0)["ours"]["ratios"]
    assert not any(row.startswith("codes") for row in ratios)
