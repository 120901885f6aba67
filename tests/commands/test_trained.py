"""``--method decoder``: the image by a decoder from ``unconv train-decoder``, on the command line and in Python."""

import json
from pathlib import Path

import pytest

import unconv
from unconv.cli import main
from unconv.errors import UsageError

TESTS = Path(__file__).parents[1]
STEPS = ("--steps", 20, "--every", 20, "--batch", 4, "--held-out", 0.99)  # nearly all images validate


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, smooth_pictures):
    folder = tmp_path_factory.mktemp("photographs")
    smooth_pictures(folder, 5)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.chdir(TESTS)
        capsys.readouterr()
        status = main([*map(str, words), "--json"])
        said = capsys.readouterr()
        return json.loads(said.out) if status == 0 else said.err.splitlines()[-1]

    return run


@pytest.fixture
def trained(call, photographs, tmp_path):
    def run(stage, *more):
        out = tmp_path / f"trained-{stage}-{len(more)}"
        return call(
            "train-decoder", "tiny_networks:vgg", "--stage", stage, "--images", photographs, *STEPS, "--out", out, *more
        )

    return run


def test_the_errors_are_those_of_its_validation(call, trained, photographs):
    document = trained("3")
    words = ("invert", "tiny_networks:vgg", "--method", "decoder", "--decoders", document["decoder"])
    found = call(*words, "--stage", "3", "--images", photographs)
    assert (found["from"], found["method"], found["side_info"]) == ("image", "decoder", "switches")
    assert len(found["images"]) == 5
    assert all(i["psnr"] is not None for i in found["images"])
    errors = sorted(i["relative_error"] for i in found["images"])
    held_out = document["validation"]["relative_error"]
    # four of the five were held out
    assert any((sum(errors) - one) / 4 == pytest.approx(held_out, abs=1e-6) for one in errors)

    stages = call(*words, "--images", photographs)["stages"]
    ((zero,), (three,), (six,)) = (s["inversion"] for s in stages)
    assert three["relative_error"] == pytest.approx(found["summary"]["relative_error"], abs=1e-6)
    assert (zero["images"], six["images"]) == (0, 0)
    assert "stage 6 has no decoder at hand; unconv train-decoder MODEL --stage 6" in six["note"]


def test_what_does_not_fit_is_one_line(call, trained, photographs, tmp_path):
    document = trained("6")
    words = ("invert", "tiny_networks:vgg", "--stage", "6", "--images", photographs, "--method", "decoder")
    given = ("--decoders", document["decoder"])
    assert "has no decoder at hand" in call(*words[:3], "0", *words[4:], *given)
    assert "no decoder nowhere" in call(*words, "--decoders", "nowhere")
    assert "see --mean and --std" in call(*words, *given, "--mean", "0.5", "--std", "2")
    run = ("--out", tmp_path / "run")
    assert call(*words, *given, *run)["summary"]["images"] == 5
    again = trained("6", "--seed", 1)
    refused = call(*words, "--decoders", again["decoder"], *run)
    assert "run" in refused
    assert "decoders" in refused


def test_an_imposed_region_is_refused(call, trained, photographs):
    document = trained("3")
    words = ("--images", photographs, "--method", "decoder", "--decoders", document["decoder"], "--region", 2)
    assert "leave out --region" in call("invert", "tiny_networks:vgg", "--stage", "3", *words)


def test_in_python(trained, photographs, monkeypatch):
    document = trained("3")
    monkeypatch.chdir(TESTS)
    given = {"decoders": [document["decoder"]], "progress": False}
    found = unconv.invert("tiny_networks:vgg", "3", photographs, method="decoder", **given)
    assert found.way.recovered == "image"
    assert found.estimates[0].shape == (3, 16, 16)
    assert all(pair is not None for pair in found.pictures)
    with pytest.raises(UsageError, match=r"^decoders are files for method decoder"):
        unconv.invert("tiny_networks:vgg", "3", photographs, **given)
