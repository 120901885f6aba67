from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from unconv.reporting import figures
from unconv.reporting.data import ReportData

Make = Callable[..., tuple[ReportData, Path]]
NAMES = {"error-depth", "sparsity", "coherence", "rip", "contact-sheet"}


def test_every_figure_is_written_twice_and_again_with_equal_bytes(make: Make) -> None:
    data, run = make(names=("$\\frac{1}{0}$ <b> & \x01 \udcff.png", "dog.png"))
    written = figures.write_figures(data, run)
    assert {(file.stem, file.suffix) for file in written} == {(n, s) for n in NAMES for s in (".svg", ".png")}
    assert all(file.parent == run / "figures" for file in written)
    first = {file: file.read_bytes() for file in written}
    for file, content in first.items():
        if file.suffix == ".svg":
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content
        else:
            with Image.open(file) as picture:
                assert np.asarray(picture.convert("L")).std() > 1
    settings = dict(matplotlib.rcParams)
    assert {file: file.read_bytes() for file in figures.write_figures(data, run)} == first
    assert dict(matplotlib.rcParams) == settings


def test_lines_are_the_means_and_bars_the_ranges(make: Make) -> None:
    data, _ = make()
    figure = figures.error_against_depth(data)
    assert figure is not None
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert {name: list(values) for name, values in drawn.items()} == {
        "transpose, switches known": [0.80, 0.85, 0.90],
        "minimum norm, switches known": [0.10, 0.20, 0.45],
        "minimum norm, switches and gates known": [0.05, 0.15, 0.30],
    }
    bars = [segment[:, 1] for collection in axes.collections for segment in collection.get_segments()]
    assert len(bars) == 9
    assert bars[5] == pytest.approx([0.43, 0.47])
    assert axes.get_ylim()[1] >= 1


def test_a_panel_for_each_tensor_and_code(make: Make) -> None:
    data, _ = make()
    stages = [
        stage | {"inversion": stage["inversion"] + [r | {"from": "layer"} for r in stage["inversion"]]}
        for stage in data.stages
    ]
    figure = figures.error_against_depth(replace(data, stages=stages))
    assert figure is not None
    assert len(figure.axes) == 2


def test_intervals_are_the_percentiles(make: Make) -> None:
    data, _ = make()
    figure = figures.rip(data)
    assert figure is not None
    assert len(figure.axes) == 4
    for axes in figure.axes:
        for collection in axes.collections:
            for segment in collection.get_segments():
                assert list(segment[:, 1]) == [0.9, 1.1]


def test_only_stages_that_were_measured_are_drawn(make: Make) -> None:
    data, _ = make()
    stages = [stage | {"pooled": None if i == 1 else stage["pooled"]} for i, stage in enumerate(data.stages)]
    figure = figures.sparsity(replace(data, stages=stages))
    assert figure is not None
    activation, pooled = figure.axes[0].lines
    assert list(activation.get_ydata()) == [50, 49, 48]
    assert (list(pooled.get_xdata()), list(pooled.get_ydata())) == ([0, 2], [70, 68])


def test_nothing_is_drawn_of_nothing(make: Make) -> None:
    bare = [{"stage": "conv", "kind": "conv", "input_shape": [3, 8, 8], "code_shape": [4, 8, 8]}]
    data, run = make(stages=bare, pictures=[])
    assert figures.write_figures(data, run) == []
    assert not (run / "figures").exists()


def test_contact_sheet_shows_every_picture_it_can_read(make: Make) -> None:
    data, run = make()
    (run / "images/0-1-2.png").unlink()
    figure = figures.contact_sheet(data, run)
    assert figure is not None
    (axes,) = figure.axes
    # two originals and two times three reconstructions, less the one that is gone
    assert len(axes.images) == 2 * 4 - 1
    captions = [text.get_text() for text in axes.texts]
    assert "cat.png" in captions
    assert "0.280" in captions
