"""A budget is dealt out in whole passes, by arithmetic alone."""

import itertools

import pytest

from unconv.errors import UnconvError
from unconv.evaluate.budget import (
    CALIBRATION_SHARE,
    MOST_PASSES,
    MOST_WITHOUT_ROBUST,
    SHARE,
    STEPS,
    Clock,
    calibration_passes,
    check_linear,
    passes_to_try,
    plan_passes,
)
from unconv.evaluate.reconstruction import Task
from unconv.inversion.calibration import CalibrationConfig, Refinement
from unconv.inversion.linear import EXAMPLES

TASKS = [Task(layer, method=method) for layer in ("a", "b") for method in ("linear", "gauss-newton")]


def curve(*errors):
    """Give what calibration found without side information."""
    return Refinement(10.0, {"none": errors})


def test_time_goes_where_the_error_falls_most():
    found = {"a": curve(0.5, 0.5, 0.49, 0.48, 0.47), "b": curve(0.5, 0.5, 0.4, 0.3, 0.2)}
    passes = plan_passes(TASKS, {"a": 0.1, "b": 0.1}, 2, 0.8 / SHARE, found)
    assert passes == {"a": 0, "b": 4}
    passes = plan_passes(TASKS, {"a": 0.1, "b": 10.0}, 2, 10 / SHARE, found)
    assert passes["a"] >= 4
    assert passes["b"] == 0


def test_a_longer_curve_is_looked_at_as_a_whole():
    # the first passes lose, later ones gain
    found = {"a": curve(0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.5, 0.3, 0.2)}
    assert plan_passes(TASKS, {"a": 0.1}, 1, 0.8 / SHARE, found) == {"a": 8}
    assert plan_passes(TASKS, {"a": 0.1}, 1, 0.7 / SHARE, found) == {"a": 0}


def test_more_time_never_gives_a_single_layer_less():
    for found in ({}, {"a": curve(0.5, 0.5, 0.3)}):
        counts = [plan_passes(TASKS, {"a": 0.013}, 3, seconds, found)["a"] for seconds in range(30)]
        assert counts[0] == 0
        assert counts[-1] == MOST_PASSES
        assert set(counts) <= {0, *STEPS}
        assert all(x <= y for x, y in itertools.pairwise(counts))


def test_a_budget_too_small_for_the_linear_part_says_what_is_needed():
    check_linear(5, Clock(10), 10)
    with pytest.raises(UnconvError, match=r"a budget of 2 s is too small.*about 7 s"):
        check_linear(7, Clock(2), 2)


def test_what_a_calibration_takes_counts_every_kind_of_side_information():
    config = CalibrationConfig()
    assert calibration_passes(3) - calibration_passes(0) == 3 * config.robust_cost(EXAMPLES, 1) > 0
    assert MOST_WITHOUT_ROBUST < config.robust_from <= MOST_PASSES


def test_a_layer_is_tried_only_where_its_images_can_be_refined_afterwards():
    trial = calibration_passes()
    enough = trial / CALIBRATION_SHARE
    assert passes_to_try(1.0, enough + 1, enough + 1, images=1, kinds=1) >= STEPS[0]
    assert passes_to_try(1.0, enough - 1, 1e9, images=1, kinds=1) == 0
    # many images: a trial that no refinement can follow is time lost, whatever the layer's share
    needed = trial + 1000 * 3 * STEPS[0] / SHARE
    assert passes_to_try(1.0, enough, needed - 1, images=1000, kinds=3) == 0
    assert passes_to_try(1.0, enough, needed + 1, images=1000, kinds=3) >= STEPS[0]


def test_a_robust_loss_is_tried_only_where_there_is_time():
    enough = calibration_passes(2) / CALIBRATION_SHARE
    assert passes_to_try(1.0, 2 * enough, 1e9, images=2, kinds=2) > MOST_WITHOUT_ROBUST
    assert passes_to_try(1.0, enough - 1, 1e9, images=2, kinds=2) <= MOST_WITHOUT_ROBUST
    assert passes_to_try(1.0, float("inf"), float("inf"), images=2, kinds=2) == MOST_PASSES
