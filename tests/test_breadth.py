"""Networks of many families through ``benchmarks/breadth.py``: three layers inverted, or a reason."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(path):
    found = importlib.util.spec_from_file_location(f"scripts_{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


breadth = script(ROOT / "benchmarks" / "breadth.py")


def check(model, folder):
    row = breadth.attempt(model, folder)
    assert "failed" not in row, row
    assert row["blocks"] >= 1
    assert row["difference"]["relative"] < 1e-4
    assert 0 <= row["inverted"]["first"]["linear"] < 1
    assert len(row["inverted"]) == 3
    assert not row["without_result"]


@pytest.mark.slow
@pytest.mark.parametrize("model", breadth.names())
def test_every_network(model, tmp_path):
    check(model, tmp_path / "run")


def test_a_model_that_stops_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    row = breadth.attempt("cases:no_such_network", tmp_path / "run")
    assert "no_such_network" in row["failed"]
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = script(ROOT / "docs" / "fill_breadth.py")
    inverted = {role: {"layer": "0", "linear": 0.123} for role in ("first", "last", "embedding")}
    good = {"model": "b", "size": 64, "layers": 9, "blocks": 2, "skipped": {"never: x": 3}}
    good |= {"difference": {"block": "0", "relative": 2e-7}, "inverted": inverted, "seconds": 1.6}
    good |= {"without_result": {"no gradient passes": 2}}
    _, first, second = page.table([good, row])
    assert first == ("b", 9, 2, "0.12", "0.12", "0.12", "3 never")
    assert second[-1] == f"stopped: {row['failed']}"
    summary = page.summary([good, row])
    assert "1 of 2 models went through" in summary
    assert "- 2 times no result: no gradient passes" in summary
