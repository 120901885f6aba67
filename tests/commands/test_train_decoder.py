"""``unconv train-decoder`` end to end: killed and resumed, its document, ``--method decoder`` with its file."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, smooth_pictures):
    folder = tmp_path_factory.mktemp("photographs")
    smooth_pictures(folder, 10)
    return folder


def test_document_files_and_text(call, photographs, tmp_path):
    words = ("train-decoder", "cases:vgg", "--layer", "0", "--images", photographs, "--steps", 4, "--every", 2)
    document = call(*words, "--out", tmp_path / "run", "--json").document
    keys = {"layer", "run", "decoder", "encoder_sha256", "images", "resumed_from", "curve", "validation", "skipped"}
    assert set(document) == keys
    with Image.open(tmp_path / "run" / "images" / "held-out.png") as sheet:
        assert sheet.width > 16
    ended = call(*words, "--out", tmp_path / "run")
    assert "resumed from step 4" in ended.out
    again = call(*words, "--out", tmp_path / "run", "--seed", 1)
    assert again.status == 1
    assert "seed was 0, now 1" in again.message


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("cases:vgg", "--layer", "0", "--steps", 0), 2, "--steps is 0"),
        (("cases:vgg", "--layer", "0", "--held-out", 1), 2, "--held-out is 1"),
        (("cases:vgg", "--layer", "0", "--crop", 99), 1, "less than the crop of 99"),
        (("cases:vgg", "--layer", "0", "--rate", 1e30), 1, "rate"),
    ],
)
def test_errors_are_one_line(call, photographs, tmp_path, words, status, message):
    ended = call("train-decoder", *words, "--images", photographs, "--out", tmp_path / "run")
    assert ended.status == status, ended.err
    assert message in ended.message


def test_the_errors_of_the_decoder_method_are_those_of_its_validation(call, photographs, tmp_path):
    recipe = ("--steps", 20, "--every", 20, "--batch", 4, "--held-out", 0.99)  # nearly all images validate
    words = ("cases:vgg", "--layer", "3", "--images", photographs)
    trained = call("train-decoder", *words, *recipe, "--out", tmp_path / "run", "--json").document
    decode = ("--method", "decoder", "--side-info", "switches")
    found = call("invert", *words, *decode, "--decoders", trained["decoder"], "--json").document
    errors = [image["relative_error"] for image in found["images"]]
    assert len(errors) == 10
    held_out = trained["validation"]["relative_error"]
    assert any((sum(errors) - one) / 9 == pytest.approx(held_out, abs=1e-6) for one in errors)  # one was trained on
    assert "has no trained decoder" in call("invert", *words, *decode).message
    assert "nowhere" in call("invert", *words, *decode, "--decoders", "nowhere").message
    normalised = call("invert", *words, *decode, "--decoders", trained["decoder"], "--mean", "0.5", "--std", "2")
    assert "prepared as" in normalised.message
