"""``unconv train-decoder`` end to end: killed and resumed, its document, one-line errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from unconv.cli import main

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, smooth_pictures):
    folder = tmp_path_factory.mktemp("photographs")
    smooth_pictures(folder, 10)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.chdir(TESTS)
        capsys.readouterr()
        status = main(["train-decoder", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_killed_and_resumed_it_ends_as_undisturbed(call, photographs, tmp_path):
    words = ["tiny_networks:vgg", "--stage", "6", "--images", photographs, "--json"]
    words += ["--steps", 100, "--every", 10, "--batch", 4, "--held-out", 0.2]
    status, out, err = call(*words, "--out", tmp_path / "undisturbed")
    assert status == 0, err
    whole = json.loads(out)

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "unconv.cli", "train-decoder", *map(str, words), "--out", str(killed)]
    process = subprocess.Popen(
        command, cwd=TESTS, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    assert not (killed / "decoder.safetensors").exists()

    status, out, err = call(*words, "--out", killed)
    assert status == 0, err
    resumed = json.loads(out)
    assert 10 <= resumed["resumed_from"] < 100
    assert resumed["validation"]["loss"] == pytest.approx(whole["validation"]["loss"], abs=1e-6)
    assert [row["step"] for row in resumed["curve"]] == list(range(10, 101, 10))
    for row, expected in zip(resumed["curve"], whole["curve"], strict=True):
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-6)


def test_document_files_and_text(call, photographs, tmp_path):
    words = ("tiny_networks:vgg", "--stage", "0", "--images", photographs, "--steps", 4, "--every", 2)
    status, out, err = call(*words, "--out", tmp_path / "run", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert set(document) == {
        "stage", "decoder", "encoder_sha256", "images", "resumed_from", "curve", "validation", "skipped",
    }  # fmt: skip
    assert "step 4: training loss" in err
    kept = json.loads((tmp_path / "run" / "decoder.json").read_text())
    assert kept["curve"] == document["curve"]
    assert kept["command"].startswith("unconv train-decoder tiny_networks:vgg --images ")
    assert kept["command"].endswith("--stage 0 --steps 4 --every 2")
    assert (tmp_path / "run" / "curve.svg").read_text().startswith("<svg")
    with Image.open(tmp_path / "run" / "images" / "held-out.png") as sheet:
        assert sheet.size == (18, 35)  # one held-out image above its reconstruction, one pixel between
    status, out, _ = call(*words, "--out", tmp_path / "run")
    assert "resumed from step 4" in out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("tiny_networks:vgg", "--size", 16), 2, "--stage is missing; use one of 0, 3, 6"),
        (("tiny_networks:vgg", "--stage", "0"), 2, "--images is missing"),
        (("tiny_networks:vgg", "--stage", "9", "--images", "IN"), 2, "no stage '9'"),
        (("tiny_networks:residual", "--stage", "head", "--images", "IN"), 1, "no mirrored decoder"),
        (("tiny_networks:vgg", "--stage", "0", "--images", "IN", "--steps", 0), 2, "--steps is 0"),
        (("tiny_networks:vgg", "--stage", "0", "--images", "IN", "--held-out", 1), 2, "--held-out is 1"),
        (("tiny_networks:vgg", "--stage", "0", "--images", "IN", "--crop", 99), 1, "less than the crop of 99"),
        (("tiny_networks:vgg", "--stage", "0", "--images", "nowhere"), 2, "nowhere"),
        (("tiny_networks:vgg", "--stage", "0", "--images", "IN", "--rate", 1e30), 1, "lower --rate"),
    ],
)
def test_errors_are_one_line(call, photographs, tmp_path, words, status, message):
    given = [photographs if word == "IN" else word for word in words]
    found, out, err = call(*given, "--out", tmp_path / "run")
    lines = [line for line in err.splitlines() if line.startswith("unconv: ")]
    assert found == status, err
    assert out == ""
    assert len(lines) == 1, err
    assert re.search(message, lines[0]), err


def test_another_command_is_refused_in_the_same_folder(call, photographs, tmp_path):
    words = ("tiny_networks:vgg", "--stage", "0", "--images", photographs, "--steps", 1, "--out", tmp_path / "run")
    assert call(*words)[0] == 0
    status, _, err = call(*words, "--seed", 1)
    assert status == 1
    assert "seed was 0, now 1" in err
