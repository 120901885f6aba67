"""The calculator of Theorem 3.1 and the measured side of Theorem 3.3."""

import json

from unconv.measure.theorems import theorem_31_delta
from unconv.paper import thm31, thm33
from unconv.paper.thm31 import Sizes


def test_what_the_calculator_asks_for_is_enough_and_no_more():
    sizes = Sizes(k=10)
    ours = thm31.run(sizes)["ours"]
    for wanted, channels in ours["channels_needed"].items():
        assert theorem_31_delta(10, channels, 5, 32, 96) <= float(wanted)
        assert theorem_31_delta(10, channels - 1, 5, 32, 96) > float(wanted)
    assert not ours["says_something"]
    wide = thm31.run(Sizes(k=10, M=4096))["ours"]
    assert wide["says_something"]
    for wanted, k in wide["largest_k"].items():
        assert theorem_31_delta(k + 1, 4096, 5, 32, 96) > float(wanted)
        assert not k or theorem_31_delta(k, 4096, 5, 32, 96) <= float(wanted)


def test_measured_errors_stay_below_the_bound():
    result = thm33.run((Sizes(k=2, M=8, l=3, D=12, K=10), Sizes(k=1, M=512, l=3, D=8, K=4)), draws=50, effort=0.02)
    for row in result["ours"]:
        assert row["lower_2k"] <= row["upper_2k"]
        if row["bound_upper"] is not None:
            assert row["error_true_switches"] <= row["bound_upper"]
            assert row["error_found_switches"] <= row["bound_upper"]
    ((header, rows),) = thm33.tables(json.loads(json.dumps(result, allow_nan=False))).values()
    assert [len(row) for row in rows] == [len(header)] * 2
