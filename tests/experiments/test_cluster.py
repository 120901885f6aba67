"""The simulation of a cluster against counts by hand, and the reading of a run's costs."""

import itertools
import json
import os

import pytest

from unconv.errors import UnconvError
from unconv.experiments.cluster import Costs, measured, outcomes, simulate, table

# seconds: 1 to load, 2 to count, 10 to solve, 3 besides; nothing else
PLAIN = Costs("cpu", 4, 2, 5.0, 1.0, 2.0, (10.0,), 3.0, (), 0.0, 0.0)


def test_one_rank_does_one_after_the_other():
    assert simulate(PLAIN, 8, 1) == pytest.approx(8 * (1 + 2) + 8 * (10 + 1 + 3))
    assert simulate(PLAIN, 8, 1, speedup=2) == pytest.approx(8 * (1 + 1) + 8 * (5 + 1 + 3))


def test_ranks_wait_for_the_one_with_most_blocks():
    # five blocks of two on two ranks: three and two
    assert simulate(PLAIN, 10, 2, skew=0) == pytest.approx(6 * 3 + 6 * 14)
    (found,) = outcomes(PLAIN, 10, [2], skew=0)
    assert found.speed == pytest.approx(10 / 6)
    assert found.imbalance == pytest.approx(6 / 5)
    assert found.waiting == pytest.approx(1 / 6)


def test_stages_starting_and_merging_are_paid_for():
    costs = Costs("cpu", 4, 2, 5.0, 0.0, 0.0, (1.0,), 0.0, (100.0, 50.0), 0.5, 7.0)
    assert simulate(costs, 4, 1) == pytest.approx(7 + 4 + 150 + 4 * 5 * 0.5)
    # the first stage is the last rank's, the second that before
    assert simulate(costs, 4, 2, skew=0) == pytest.approx(7 + 2 + 100 + 4 * 5 * 0.5)
    assert simulate(costs, 4, 2, skew=60) > simulate(costs, 4, 2, skew=0)


def test_more_ranks_are_faster_and_less_efficient():
    costs = Costs("cpu", 4, 2, 5.0, 0.1, 0.2, (1.0, 2.0, 9.0), 0.3, (5.0, 6.0), 1e-4, 5.0)
    found = outcomes(costs, 1000, [1, 2, 8, 64])
    assert found[0].speed == found[0].efficiency == 1
    assert [one.seconds for one in found] == sorted((one.seconds for one in found), reverse=True)
    assert all(a.efficiency > b.efficiency for a, b in itertools.pairwise(found))
    with pytest.raises(ValueError, match="at least 1"):
        outcomes(costs, 10, [0])


@pytest.fixture
def run(tmp_path):
    """A run whose parts were written at known times."""
    settings = {"verb": "report", "device": "cpu", "batch": 2, "stages": ["a"]}
    rows = [{"image": i, "seconds": 4.0} for i in range(2)]
    parts = {
        "count-000000-000001": (10, {}),
        "activity": (10, {}),
        "measure-000": (12, {}),
        "certificate-000": (15, {}),
        "inversion-000000-000001": (33, {"rows": rows, "skipped": []}),
    }
    (tmp_path / "parts").mkdir()
    (tmp_path / "results.parquet").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    os.utime(tmp_path / "config.json", (2, 2))
    for name, (second, content) in parts.items():
        (tmp_path / "parts" / f"{name}.json").write_text(json.dumps(content))
        # the order of the names is not that of the times
        os.utime(tmp_path / "parts" / f"{name}.json", ns=(0, second * 10**9 + len(name)))
    os.utime(tmp_path / "parts" / "count-000000-000001.json", (10, 10))
    return tmp_path


def test_costs_are_read_off_the_times_of_parts(run):
    costs = measured(run, start=1.0, load=1.5)
    assert (costs.images, costs.rows, costs.solve) == (2, 1.0, (4.0,))
    assert costs.count == pytest.approx(8 / 2 - 1.5)
    assert costs.rest == pytest.approx(18 / 2 - 4 - 1.5)
    assert costs.stages == pytest.approx((5.0,))
    text = table({"settings": {"images": 10, "speedup": 1}, "costs": vars(costs), "outcomes": []})
    assert "no speed-up is assumed" in text


def test_a_run_that_was_interrupted_is_refused(run):
    os.utime(run / "parts" / "measure-000.json", (40, 40))
    with pytest.raises(UnconvError, match="not made in one go"):
        measured(run, start=1.0, load=1.0)
    (run / "results.parquet").unlink()
    with pytest.raises(UnconvError, match="no finished report"):
        measured(run)
    with pytest.raises(UnconvError, match="no run that can be read"):
        measured(run / "parts")
