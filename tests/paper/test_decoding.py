"""The table over stages, side information and decoders: right numbers, and nothing lost when it is stopped."""

import copy

import pytest

from unconv.errors import UsageError
from unconv.images import ImageStream
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import gauss_newton
from unconv.linalg import relative_norm
from unconv.paper import decoding, decoding_figures

OPTIONS = {
    "layer_methods": ("iht", "convex"),
    "image_methods": ("gauss-newton", "adam", "iht"),
    "max_steps": {"gauss-newton": 2, "adam": 5},
    "outline_steps": 20,
}


def images(subject, count=3):
    return ImageStream(subject.images.paths[:count], subject.network.preprocess, 1)


@pytest.fixture
def result(subject, tmp_path):
    return decoding.run(subject.network, images(subject), ("0", "2"), pictures=tmp_path, **OPTIONS)


def test_rows_are_what_the_solvers_give(subject, result):
    x = next(iter(images(subject, 1))).inputs
    features = LayerFunction(subject.network.module, subject.network.stages(x.shape[1:]).get("2"), x.shape[1:])
    known = features.record(x, "switches")
    solution = gauss_newton(features, features(x), known, box=subject.network.box, max_steps=2, start_steps=20)
    (row,) = [r for r in result["rows"] if (r["method"], r["side_info"]) == ("gauss-newton", "switches")]
    assert row["stage"] == "2"  # stage 0 does not pool, so no image is decoded from it
    assert row["images"] == 3
    assert row["errors"][0] == pytest.approx(relative_norm(solution.value - x, x).item(), rel=1e-5)
    assert row["relative_error"] == pytest.approx(sum(row["errors"]) / 3)
    assert row["curves"][0][-1][1] == pytest.approx(row["errors"][0], abs=0.05)
    assert result["stages"]["0"]["unknowns"] == 3 * 16 * 16
    assert {r["from"] for r in result["rows"] if r["stage"] == "0"} == {"layer"}


def test_a_stopped_table_goes_on(subject, result):
    class Stopped(Exception):
        pass

    saved = []

    def save(so_far):
        saved.append(copy.deepcopy(so_far))
        if len(saved) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        decoding.run(subject.network, images(subject), ("0", "2"), save=save, **OPTIONS)
    assert saved[-1]["finished"] == 2
    again = decoding.run(subject.network, images(subject), ("0", "2"), done=saved[-1], **OPTIONS)

    def errors(found):
        return {(r["stage"], r["from"], r["side_info"], r["method"]): r["errors"] for r in found["rows"]}

    assert errors(again) == errors(result)


def test_figures_show_every_solver_and_picture(result, tmp_path):
    drawn = decoding_figures.curves(result)
    assert len(drawn.axes) == 3  # one stage, three kinds of side information
    assert all(len(panel.lines) == 6 for panel in drawn.axes)  # two solvers, three images
    sheet = decoding_figures.sheet(tmp_path, result)
    assert len(sheet.axes) == 3 * 5  # three images; the original, one-step, and Gauss-Newton thrice
    sheet.savefig(tmp_path / "sheet.png")
    with pytest.raises(UsageError, match="no pictures"):
        decoding_figures.sheet(tmp_path / "nowhere", result)
    with pytest.raises(UsageError, match="no curve"):
        decoding_figures.curves({"rows": []})


def test_an_unknown_method_is_refused(subject):
    with pytest.raises(UsageError, match="no method 'magic'"):
        decoding.run(subject.network, images(subject), ("2",), image_methods=("magic",))
