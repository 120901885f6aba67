"""Phase transitions: what is counted, on sizes where the answer is known."""

import json

import pytest
import torch

from unconv.paper import phase
from unconv.recover import cosamp, htp, iht
from unconv.solvers.solution import Solution
from unconv.sparsity import Pooled

EASY = phase.Layer(1, 12, 3, 6, "map")


def test_one_non_zero_is_found_and_one_step_scales_it_wrongly():
    for solver in (htp, cosamp):
        of_code, of_input = phase.errors(EASY, 16, 1, solver, draws=8, banks=2, seed=0)
        assert of_code.shape == of_input.shape == (8,)
        assert (of_code <= phase.EXACT).all()
    of_code, _ = phase.errors(EASY, 16, 1, iht, draws=8, banks=2, seed=0)
    assert (of_code > phase.EXACT).all()


def test_more_non_zeros_than_numbers_in_x_are_not_found():
    layer = phase.Layer(2, 4, 3, 40, 2)
    of_code, _ = phase.errors(layer, 1, 40, htp, draws=4, banks=1, seed=0)
    assert (of_code > phase.NEAR).all()


def test_errors_are_those_of_the_codes_drawn():
    """A solver that returns the zero code has error 1 in both."""

    def nothing(operator, x, model):
        return iht(operator, 0 * x, model)

    of_code, of_input = phase.errors(EASY, 4, 2, nothing, draws=6, banks=3, seed=1)
    assert torch.equal(of_code, torch.ones(6, dtype=torch.float64))
    assert torch.equal(of_input, torch.ones(6, dtype=torch.float64))


def test_filters_have_expected_unit_norm_and_depend_on_the_seed():
    operator = phase.Layer(2, 8, 3, 200, 2).operator(16, 0)
    assert operator.weight.flatten(1).square().sum(1).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(operator.weight, phase.Layer(2, 8, 3, 200, 2).operator(16, 1).weight)


def test_the_result_is_json_and_the_figure_has_a_panel_per_grid_and_solver(monkeypatch, tmp_path):
    grids = {"1-D": (EASY, (2, 8), (1, 3)), "2-D": (phase.Layer(2, 5, 3, 4, 2), (2,), (1, 2))}
    monkeypatch.setattr(phase, "GRIDS", grids)
    monkeypatch.setattr(phase, "FIGURE_2", EASY)
    monkeypatch.setattr(phase, "FIGURE_2_K", 2)
    monkeypatch.setattr(phase, "SOLVERS", {"one step": iht, "HTP": htp})
    result = phase.run(draws=2, target_draws=10)
    json.dumps(result)
    assert len(result["ours"]["cells"]) == 6 * 2
    assert all(0 <= c["exact"] <= c["near"] <= 1 for c in result["ours"]["cells"])
    assert {row["solver"]: row["recovered"] for row in result["ours"]["figure_2"]}["HTP"] == 1
    figure = phase.draw(result)
    figure.savefig(tmp_path / "phase.svg")
    assert len(figure.axes) == 2 * 2 + 1


def test_algorithm_2_finds_codes_up_to_its_small_weight():
    operator = EASY.operator(16, 0)
    model = Pooled("map", 2)
    z = model.project(torch.randn(3, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).dense()
    found = phase.algorithm_2(operator, operator.adjoint(z), model)
    assert isinstance(found, Solution)
    assert ((found.value.code.dense() - z).flatten(1).norm(dim=1) <= phase.NEAR * z.flatten(1).norm(dim=1)).all()
