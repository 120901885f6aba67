from __future__ import annotations

import csv
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from tests.reporting.conftest import MadeReport

from unconv.reporting import figures

Make = Callable[..., MadeReport]
NAMES = {"error-depth", "retained"}


def test_every_figure_is_written_three_times_and_again_with_equal_bytes(make: Make) -> None:
    made = make(names=("$\\frac{1}{0}$ <b> & \x01 \udcff.png", "dog.png"))
    settings = dict(matplotlib.rcParams)
    written = figures.draw_figures(made.read(), made.run)
    assert set(written) == NAMES
    files = sorted((made.run / "figures").iterdir())
    assert {file.name for file in files} == {f"{n}{s}" for n in NAMES for s in (".svg", ".png", ".csv")}
    first = {file: file.read_bytes() for file in files}
    for file, content in first.items():
        if file.suffix == ".svg":
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content
        elif file.suffix == ".png":
            with Image.open(file) as picture:
                assert np.asarray(picture.convert("L")).std() > 1
    figures.draw_figures(made.read(), made.run)
    assert {file: file.read_bytes() for file in files} == first
    assert dict(matplotlib.rcParams) == settings


def test_lines_are_the_means_bars_the_ranges_and_unconverged_points_hollow(make: Make) -> None:
    figure, table = figures.error_by_layer(make().read())
    axes = figure.axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 4}
    assert lines == {
        "linear decoder, features alone": [0.10, 0.25, 0.60, 0.80],
        "Gauss-Newton, features alone": [0.08, 0.20, 0.70, 0.90],
        "Gauss-Newton, with switches and gates": [0.05, 0.15, 0.40, 0.70],
    }
    hollow = [line.get_ydata()[0] for line in axes.lines if to_rgb(line.get_markerfacecolor()) == (1, 1, 1)]
    assert hollow == [0.70, 0.90, 0.70]
    bars = [segment[:, 1] for collection in axes.collections for segment in collection.get_segments()]
    assert bars[2] == pytest.approx([0.58, 0.62])
    assert {"mean colour", "all-zero answer"} <= {line.get_label() for line in axes.lines}
    assert "n = 2, at most 64 passes, 600 s" in figure.get_supxlabel()
    record = dict(zip(table[0], table[6], strict=True))
    assert record["layer"] == "layer1"
    assert record["mean"] == 0.20
    assert record["converged"] == record["images"] == 2


def test_retained_detail_is_the_explained_variance(make: Make) -> None:
    made = make()
    figure, _ = figures.retained_detail(made.read())
    luminance, colour = figure.axes[0].lines
    assert list(luminance.get_ydata()) == [0.99, 0.9, 0.6, 0.3]
    assert list(colour.get_ydata())[:3] == [0.95, 0.5, 0.2]
    figures.draw_figures(made.read(), made.run)
    with (made.run / "figures/retained.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[1] == ["conv1", "the network's", "0.0", "0.0625", "0.99", "0.95"]
    assert len(lines) == 1 + 4 * 4


def test_random_weights_are_drawn_beside_and_nothing_below_nothing(make: Make) -> None:
    made = make()
    for layer in made.document["layers"]:
        explained = layer["linear"]["explained_variance"]
        layer["linear"]["control"] = explained | {"luminance": [1.0, 0.5, -0.5, None]}
    figure, table = figures.retained_detail(made.read())
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["luminance, random weights"][:3] == [1.0, 0.5, 0.0]
    assert table[-2][1:5] == ["random", 0.125, 0.25, -0.5]


def test_expected_errors_stand_against_true_ones(make: Make) -> None:
    made = make()
    assert figures.calibration(made.read()) is None
    for row in made.rows:
        row["expected_error"] = 0.3 if row["method"] == "linear" else None
    _, table = figures.calibration(made.read())
    assert table[1] == ["conv1", "cat.png", 0.3, pytest.approx(0.08)]
    assert len(table) == 1 + 4 * 2


def test_nothing_is_drawn_of_nothing(make: Make) -> None:
    made = make(layers=[{"layer": "conv", "kind": "Conv2d", "shape": [4, 8, 8]}])
    made.rows = []
    assert figures.draw_figures(made.read(), made.run) == {}
    assert not (made.run / "figures").exists()
