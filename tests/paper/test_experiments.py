"""Every experiment's document, tables and figure; the paper's numbering; and what the network's weights reach."""

import json
from dataclasses import replace

import pytest

from unconv.errors import UnconvError
from unconv.evaluate.network import open_network
from unconv.options import Reproduce
from unconv.paper.context import context_of, numbering
from unconv.paper.experiments import EXPERIMENTS


@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if name != "thm33"]
)  # in test_theorems, with few channels
def test_documents_are_json_tables_have_columns_and_figures_are_drawn(context, decoder_file, name):
    options = Reproduce(name=name, draws=50, samples=10, recovered=1, steps=5, decoders=(decoder_file,))
    result = EXPERIMENTS[name].run(options, lambda: context)
    document = {key: value for key, value in result.items() if key != "pictures"}
    assert list(document) == ["name", "paper", "ours", "notes"]
    assert document["name"] == name
    read = json.loads(json.dumps(document, allow_nan=False))
    for header, rows in EXPERIMENTS[name].tables(read).values():
        assert rows
        assert all(len(row) == len(header) for row in rows)
    assert (EXPERIMENTS[name].draw(result) is None) == (
        name in {"thm31", "thm33", "table1", "table2", "table3", "table4"}
    )


def test_a_pooling_ends_a_block(context):
    assert numbering(context.blocks) == {"0": (1, 1), "2": (1, 2), "5": (2, 1), "7": (2, 2), "10": (3, 1)}


def test_only_what_the_weights_reach_is_measured():
    opened = open_network("cifar-vgg", size=32)
    context = context_of(opened)
    assert len(context.names) == len(context.blocks) == 6
    assert context.shape == (3, 32, 32)
    assert context_of(opened, wanted=["features.7"]).names == ("features.7",)
    partial = replace(opened, loaded=replace(opened.loaded, missing=("features.7.weight",)))
    assert context_of(partial).names == ("features.0", "features.3")
    with pytest.raises(UnconvError, match=r"gives no features\.7\.weight"):
        context_of(partial, wanted=["features.7"])
