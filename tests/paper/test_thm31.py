import json
import math
from dataclasses import asdict

import pytest

from unconv.measure.theorems import theorem_33_bound
from unconv.paper import thm31
from unconv.paper.thm31 import Setting, constants, fit, measure, one_step, phase

SMALL = Setting(k=2, M=4, l=3, D=8, K=6)


def test_fit_finds_the_exponents_of_a_power_law():
    rows = [
        {**asdict(Setting(k=k, M=m, l=l, D=d, K=f)), "lower": 0.3 * k**0.5 * m**-0.5 * l**-1 * d**0.25 * f**0.1}
        for k, m, l, d, f in [(1, 8, 3, 16, 9), (2, 8, 3, 16, 9), (1, 32, 3, 16, 9), (1, 8, 5, 16, 9)]
        + [(1, 8, 3, 64, 9), (1, 8, 3, 16, 30), (4, 16, 7, 32, 12), (3, 64, 2, 100, 50)] * 3
    ]
    found = fit(rows, "lower", resamples=20)
    exponents = [found["exponents"][name]["exponent"] for name in thm31.VARIABLES]
    assert exponents == pytest.approx([0.5, -0.5, -1, 0.25, 0.1])
    assert found["residual"] < 1e-9


def test_a_layer_is_bracketed_above_what_is_sampled():
    row = measure(SMALL, 0, draws=300, effort=0.05)
    assert 0 < row["sampled"] <= row["lower"] + 1e-9
    assert row["lower"] <= row["upper"]


def test_constants_are_what_the_promise_lacks():
    rows = [{**asdict(thm31.CENTRE), "lower": 0.5, "upper": 1.0, "promised": 2.0}]
    assert constants(rows) == {
        "refuted_below": 1 / 16,
        "enough": 1 / 4,
        "refuted_below_at_centre": 1 / 16,
        "enough_at_centre": 1 / 4,
    }


def test_verdicts():
    # one region of one channel each: delta_2k of many wide filters is small, of few narrow ones not
    assert phase(Setting(k=1, M=20_000, l=3, D=3, K=3), 0, effort=0.01)["verdict"] == "proven"
    assert phase(Setting(k=4, M=1, l=2, D=6, K=8), 0, effort=0.05)["verdict"] == "refuted"


def test_one_step_stays_below_the_bound_where_there_is_one():
    row = one_step(Setting(k=1, M=20_000, l=2, D=2, K=3), 0, draws=20, effort=0.01)
    assert row["bound_upper"] == theorem_33_bound(row["upper_k"], row["upper_2k"])
    assert row["error_true_switches"] <= row["bound_upper"]
    wide = one_step(SMALL, 0, draws=20, effort=0.01)
    assert wide["bound_upper"] is None
    assert wide["lower_2k"] <= wide["upper_2k"]


def test_run_is_fit_for_json_and_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(thm31, "CENTRE", SMALL)
    monkeypatch.setattr(thm31, "SWEEPS", {"k": (1, 2), "M": (4, 8), "l": (2, 3), "D": (8, 10), "K": (6, 8)})
    monkeypatch.setattr(thm31, "PHASE_K", (1, 2))
    monkeypatch.setattr(thm31, "PHASE_M", (4,))
    monkeypatch.setattr(thm31, "IHT_M", (4, 8))
    result = thm31.run(seeds=1, draws=20, effort=0.001)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["ours"]["scaling"]) == 6
    header, rows = thm31.table(result)
    assert all(len(row) == len(header) for row in rows)
    for draw in (thm31.draw_scaling, thm31.draw_phase, thm31.draw_one_step):
        draw(result).savefig(tmp_path / "figure.svg")
    assert math.isfinite(result["ours"]["C"]["enough"])
