"""Sparsity against counting by hand in the network itself."""

import pytest

from unconv.paper import table2


def test_counts_are_those_of_the_network(context):
    result = table2.run(context)
    ours = result["ours"]
    assert list(ours) == ["c11", "c12", "p1", "c21", "c22", "p2"]
    counts = {"c11": 2, "c12": 4, "p1": 5, "c21": 7, "c22": 9, "p2": 10}
    for layer, depth in counts.items():
        nonzero = entries = 0
        for batch in context.images:
            out = context.network.module[:depth](batch.inputs)
            nonzero, entries = nonzero + int((out != 0).sum()), entries + out.numel()
        assert ours[layer]["percent"] == pytest.approx(100 * nonzero / entries, abs=0.1)
