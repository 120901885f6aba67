"""Both theorems against their formulas."""

import math

import pytest

from unconv.measure.theorems import theorem_31_delta, theorem_33_bound


def test_theorem_31_is_its_formula():
    promised = theorem_31_delta(10, 32, 5, 32, 96, failure=0.01)
    assert promised == pytest.approx(math.sqrt(10 * 32 / (32 * 25) * (math.log(96) + math.log(28) - math.log(0.01))))
    assert theorem_31_delta(10, 64, 5, 32, 96) == pytest.approx(theorem_31_delta(10, 32, 5, 32, 96) / math.sqrt(2))


def test_theorem_33_is_its_formula_and_says_where_it_ends():
    assert theorem_33_bound(0.05, 0.1) == pytest.approx(0.5 / 0.95 * math.sqrt(1.1 / 0.9))
    assert theorem_33_bound(0.0, 0.0) == 0
    assert theorem_33_bound(0.5, 1.0) == math.inf
