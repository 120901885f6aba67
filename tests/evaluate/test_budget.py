"""A budget is dealt out in whole passes, by arithmetic alone."""

import itertools

import pytest

from unconv.errors import UnconvError
from unconv.evaluate.budget import LEAST_PASSES, MOST_PASSES, SETUP, SHARE, Clock, check_linear, plan_passes
from unconv.evaluate.reconstruction import Task

TASKS = [Task(layer, method=method) for layer in ("a", "b") for method in ("linear", "gauss-newton")]


def test_layers_get_equal_time():
    passes = plan_passes(TASKS, {"a": 0.1, "b": 0.4}, 2, (40 + 0.5 * SETUP) / SHARE)
    assert passes == {"a": 100, "b": 25}


def test_what_a_layer_does_not_need_is_left_to_the_others():
    passes = plan_passes(TASKS, {"a": 0.001, "b": 0.4}, 1, (40 + 0.401 * SETUP) / SHARE)
    assert passes == {"a": MOST_PASSES, "b": 99}


def test_a_layer_gets_enough_to_gain_or_nothing():
    counts = [plan_passes(TASKS, {"a": 0.013, "b": 0.4}, 3, seconds) for seconds in range(0, 400, 7)]
    assert counts[0] == {"a": 0, "b": 0}
    assert {"a": MOST_PASSES, "b": 0} in counts
    assert all(n == 0 or n >= LEAST_PASSES for passes in counts for n in passes.values())
    assert all(x["b"] <= y["b"] for x, y in itertools.pairwise(counts))


def test_layers_without_iterations_get_no_passes():
    assert plan_passes([Task("a", method="linear")], {"a": 1.0}, 1, 100) == {"a": 0}


def test_a_budget_too_small_for_the_linear_part_says_what_is_needed():
    check_linear(5, 10)
    with pytest.raises(UnconvError, match=r"a budget of 2 s is too small.*about 7 s"):
        check_linear(7, 2)


def test_the_clock():
    now = [0.0]
    clock = Clock(10, lambda: now[0])
    now[0] = 4
    assert (clock.left(), clock.elapsed()) == (6, 4)
    assert Clock(None).left() == float("inf")
