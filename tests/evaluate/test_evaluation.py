"""The main job against numbers computed by hand from the same parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unconv.errors import UnconvError
from unconv.evaluate.aggregate import MetricAggregator
from unconv.evaluate.evaluation import EvaluationConfig, survey, work
from unconv.evaluate.network import CapturedStream, Network
from unconv.evaluate.run_directory import RunDirectory
from unconv.evaluate.sparsity_stats import IMPOSED, activity_over, paper_k
from unconv.images import ImageStream
from unconv.inversion.methods import InversionMethod, coded_stage
from unconv.measure.sparsity import k_from
from unconv.models import load_model
from unconv.sparsity import Pooled
from unconv.tracing import capture_inputs as capture

DEFAULT_METHODS = (
    InversionMethod("image", "network", "transpose", "switches"),
    InversionMethod("layer", "network", "min-norm", "switches"),
    InversionMethod("layer", "paper", "iht", "switches"),
)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    loaded = load_model("tiny_networks:vgg")
    return Network(loaded.module, loaded.preprocess)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Five pictures of two sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for i in range(5):
        size = (16, 16) if i < 3 else (12, 20)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def plan(**changes):
    return replace(EvaluationConfig(("0", "3"), DEFAULT_METHODS, region=2, samples=5, pictures=1, seed=0), **changes)


def run_survey(network, paths, run, batch=2, **changes):
    made = []
    directory = RunDirectory(run, {"batch": batch} | {k: str(v) for k, v in changes.items()})
    stream = ImageStream(paths, network.preprocess, batch)
    found = survey(network, stream, plan(**changes), directory, lambda what, units: made.append(units))
    directory.close()
    return found, made


def rows(found):
    return list(found.rows())


def test_numbers_do_not_depend_on_batches_and_sizes_mix(network, paths, tmp_path):
    one, made = run_survey(network, paths, tmp_path / "one", batch=1)
    two, _ = run_survey(network, paths, tmp_path / "two", batch=3)
    assert sum(made) == work(plan(), 5)
    assert len(rows(one)) == 5 * 2 * len(DEFAULT_METHODS)
    assert all(row["file"].endswith(f"{row['image']}.png") for row in rows(one))

    def key(row):
        return row["image"], row["stage"], row["from"], row["method"]

    errors = [[row["relative_error"] for row in sorted(rows(found), key=key)] for found in (one, two)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_rows_are_what_the_parts_compute(network, paths, tmp_path):
    found, _ = run_survey(network, paths[:1], tmp_path / "run")
    x = next(iter(ImageStream(paths[:1], network.preprocess))).inputs
    stage = network.stages(x.shape[1:]).get("3")
    inner = capture(network.module, ["3"], x)["3"]
    fraction = (
        (torch.nn.functional.max_pool2d(stage.activate(stage.preactivation(inner)), 2) > 0).double().mean().item()
    )
    coded = coded_stage(stage, "paper", 2)
    h = coded.operator.forward(inner)
    code = Pooled(2, k=k_from(fraction, 16 * 16)).project(h)
    back = coded.operator.adjoint(code.dense())
    back *= inner.norm() / back.norm()
    expected = ((back - inner).norm() / inner.norm()).item()
    row = next(r for r in rows(found) if r["stage"] == "3" and r["method"] == "iht")
    assert row["relative_error"] == pytest.approx(expected, rel=1e-5)
    assert found.stages[1]["rip"][0]["k"] == k_from(fraction, 256)


def test_activity_counts_own_and_imposed_pooling(network, paths):
    stream = CapturedStream(network, ImageStream(paths, network.preprocess), lambda _: ("0", "3"))
    activity, shape = activity_over(stream, ("0", "3"), 2, lambda *_: None)
    assert shape == (3, 16, 16)
    assert IMPOSED + "0" not in activity.stages
    imposed, own = activity[IMPOSED + "3"].pooled, activity["3"].pooled
    assert imposed.entries == own.entries // 4
    assert imposed.fraction > own.fraction
    assert activity["0"].pooled.fraction > activity["0"].activation.fraction


def test_pictures_are_kept_for_the_first_images_only(network, paths, tmp_path):
    run_survey(network, paths, tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "images").iterdir())
    assert names[0] == "0000-00-00.png"
    assert all(name.startswith("0000") for name in names)


def test_every_stage_has_a_certificate_and_a_picture_of_what_it_shows_least(network, paths, tmp_path):
    found, _ = run_survey(network, paths, tmp_path / "run")
    for number, stage in enumerate(found.stages):
        certificate = stage["certificate"]
        # the k of the sampled ratios, and the first images
        assert certificate["delta_k"]["k"] == stage["rip"][0]["k"]
        assert 0 < certificate["delta_k"]["lower"] <= certificate["delta_k"]["upper"]
        assert certificate["image"]["images"] == 3
        assert certificate["image"]["unknowns"] == 3 * 16 * 16
        assert certificate["direction"]["picture"] == f"images/0000-{number:02d}-unseen.png"
        with Image.open(tmp_path / "run" / certificate["direction"]["picture"]) as picture:
            assert picture.size == (16, 16)
        assert certificate["words"]
        assert certificate["notes"] == []
    none, _ = run_survey(network, paths[:1], tmp_path / "none", pictures=0)
    assert none.stages[0]["certificate"]["direction"]["picture"] is None
    assert not list((tmp_path / "none" / "images").iterdir())


def test_finished_parts_are_not_computed_again(network, paths, tmp_path):
    first, _ = run_survey(network, paths, tmp_path / "run")
    again, made = run_survey(network, paths, tmp_path / "run")
    assert made == []
    assert (again.stages, rows(again)) == (first.stages, rows(first))


def test_a_deeper_k_keeps_all_regions_at_most(network):
    stage = network.stages((3, 16, 16)).get("0")
    assert paper_k(stage, 1.0) == 12 * 8 * 8
    assert paper_k(stage, 0.0) == 1


def test_means_leave_out_what_failed():
    row = {"file": "x", "stage": "a", "psnr": None, "ssim": None, "seconds": 1.0, "picture": None} | DEFAULT_METHODS[
        0
    ].fields()
    rows = [
        row | {"relative_error": 0.5, "status": "converged"},
        row | {"relative_error": 0.7, "status": "max_steps"},
        row | {"relative_error": None, "seconds": None, "status": "cannot"},
    ]
    tally = MetricAggregator()
    for each in rows:
        tally.add(each)
    (found,) = tally.summary("a", DEFAULT_METHODS)
    assert found["relative_error"] == pytest.approx(0.6)
    assert (found["images"], found["failed"]) == (2, 1)
    assert found["note"] == "cannot; 1 of 2 images ended before the tolerance"


def test_all_images_unusable_is_one_error(monkeypatch, paths):
    monkeypatch.chdir(Path(__file__).parents[1])
    loaded = load_model("tiny_networks:not_finite")
    network = Network(loaded.module, loaded.preprocess)
    stream = CapturedStream(network, ImageStream(paths, network.preprocess), lambda _: ("3",))
    with pytest.raises(UnconvError, match="NaN or infinite"):
        list(stream)
    assert len(stream.skipped) == 5
