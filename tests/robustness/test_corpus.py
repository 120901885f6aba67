"""Malformed images and weights: each is used or refused by name with a reason, and none stops the others."""

import warnings
from pathlib import Path

import malformed
import pytest
import torch
from faults import run

from unconv.checkpoint import choose_weights, fit_weights, read_weights
from unconv.errors import UnconvError
from unconv.images import ImageStream, display_name, find_images
from unconv.preprocessing import Preprocess


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return folder, malformed.images(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    flag = folder.parent / f"{folder.name}-flag"
    return flag, malformed.weights(folder, flag)


def check_line(line):
    assert line
    assert line.isprintable(), line
    assert "Traceback" not in line
    assert len(line) < 1000


def test_every_image_is_used_or_skipped_by_name_with_a_reason(images):
    folder, cases = images
    paths = find_images(folder)
    assert sorted(paths) == sorted(case.path for case in cases)
    stream = ImageStream(paths, Preprocess(), root=folder, batch_size=3)
    used = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in stream:
            used |= set(batch.names)
            assert torch.isfinite(batch.inputs).all()
    skipped = {image.file: image.reason for image in stream.skipped}
    assert len(used) + len(skipped) == len(cases)
    for case in cases:
        name = display_name(case.path, folder)
        assert (name in used) is not (name in skipped)
        if case.expected != "either":
            assert (name in used) is (case.expected == "used"), (name, skipped.get(name))
        if name in skipped:
            check_line(f"{name}: {skipped[name]}")
            assert case.reason in skipped[name], name
    print(f"{len(cases)} of {len(cases)} malformed or odd images: {len(used)} used, {len(skipped)} skipped by name")


def test_the_command_line_names_every_skipped_image(place, images):
    folder, cases = images
    ended = run("sparsity", "tiny:net", "--images", folder, "--size", "16", "--json", cwd=place)
    assert ended.document["blocks"]
    lines = [line for line in ended.err.splitlines() if line.startswith("skipped ")]
    named = {line.removeprefix("skipped ").rpartition(": ")[0] for line in lines}
    for case in cases:
        if case.expected == "refused":
            assert any(line.startswith(f"skipped {display_name(case.path, folder)}: ") for line in lines), case
    assert len(named) == len(lines)
    assert "Traceback" not in ended.err
    assert "unexpected" not in ended.err


def test_every_weights_file_is_used_or_refused_by_name_with_a_reason(weights):
    flag, cases = weights
    refused = 0
    for case in cases:
        said = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                model = malformed.Model()
                fit_weights(model, choose_weights(model, read_weights(case.path)), display_name(case.path))
            except UnconvError as error:
                said = str(error)
        assert not flag.exists(), case
        if case.expected != "either":
            assert (said is None) is (case.expected == "used"), (case, said)
        if said is not None:
            check_line(said)
            assert display_name(case.path) in said, said
            assert case.reason in said, said
        refused += said is not None
    print(f"{len(cases)} of {len(cases)} weights files: {len(cases) - refused} used, {refused} refused, no code run")
    assert not Path("owned").exists()


def test_the_command_line_refuses_code_in_one_line(place, weights):
    flag, cases = weights
    for case in cases:
        if case.path.name in {"os.system.zip.pth", "it's <b>\n\udcff.pth"}:
            ended = run("layers", "tiny:net", "--weights", case.path, cwd=place)
            assert ended.status == 1
            assert ended.message.isprintable()
            assert display_name(case.path) in ended.message
    assert not flag.exists()
