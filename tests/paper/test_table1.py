"""The entries of Table 1 are those of the committed result."""

import json
from pathlib import Path

import pytest

from unconv.paper import table1

RESULT = Path(__file__).parents[2] / "experiments" / "results" / "table1.json"


def test_entries_are_the_committed_ones():
    result = table1.run()
    committed = json.loads(RESULT.read_text())["ours"]
    for filters, entries in result["ours"].items():
        assert list(entries) == list(committed[filters]) == ["1", "2", "3"]
        for blocks, entry in entries.items():
            measured = committed[filters][blocks]
            assert entry == {name: pytest.approx(measured[name], abs=0.005) for name in table1.COLUMNS}
