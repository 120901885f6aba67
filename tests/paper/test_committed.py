"""Committed results: found where they belong, named where they are missing."""

import pytest

from unconv.errors import UnconvError
from unconv.paper import committed


def test_a_missing_result_names_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    with pytest.raises(UnconvError, match=r"table1.json is not there.*python -m x"):
        committed.committed_result("table1", "python -m x")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table1.json").write_text('{"name": "table1"}')
    assert committed.committed_result("table1", "python -m x") == {"name": "table1"}
