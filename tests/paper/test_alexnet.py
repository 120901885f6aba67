"""Overlapping poolings are taken as they are."""

import json

from unconv.paper import alexnet


def test_the_four_tables_and_the_overlap(subject):
    result = alexnet.run(subject, samples=20, recovered=1, steps=5)
    json.dumps(result, allow_nan=False)
    assert any("Overlapping poolings: 2." in note for note in result["notes"])
    tables = alexnet.tables(result)
    assert list(tables) == ["table2", "table3", "table4", "fig3"]
    for header, rows in tables.values():
        assert rows
        assert all(len(row) == len(header) for row in rows)
