"""``--dry-run``: says what the verb would do, and leaves no trace."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unconv.cli import main
from unconv.invert.ways import WAYS, Way
from unconv.stages import find_stages
from unconv.verbs import dry_run, reproduce
from unconv.verbs.forecast import Memory, duration
from unconv.verbs.options import Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(made / f"{i}.png")
    (made / "0.png").write_bytes(b"no picture")
    return made


@pytest.fixture
def say(monkeypatch, capsys, folder):
    def run(verb, *words):
        monkeypatch.chdir(Path(__file__).parents[1])
        given = [verb, "tiny_networks:vgg", "--images", folder, *words, "--dry-run"]
        status = main([str(word) for word in given])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_report_writes_nothing_and_says_what_it_would(say, tmp_path):
    words = ("--out", tmp_path / "run", "--samples", 5, "--effort", 0.1, "--batch", 2)
    status, out, err = say("report", *words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["dry_run"] == "report"
    assert found["stages"] == ["0", "3", "6"]
    assert len(found["ways"]) == len(WAYS)
    assert found["images"] == "3, the first 1.png at 16x16, 2 at a time"
    assert found["out"] == str(tmp_path / "run")
    assert found["seconds"] > 0
    assert found["memory_bytes"] > 1e7
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_is_taken_is_said_to_be(say, tmp_path):
    words = ("--out", tmp_path, "--samples", 5, "--effort", 0.1, "--methods", "transpose")
    (tmp_path / "config.json").write_text("{}")
    status, out, _ = say("report", *words)
    assert status == 0
    assert "would be refused: it holds a run with other settings" in out
    assert out.rstrip().endswith("Nothing has been written.")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("verb", "words", "expected"),
    [
        ("invert", ("--stage", "3", "--out", "nowhere", "--method", "min-norm"), ["layer by min-norm (switches)"]),
        ("invert", ("--method", "transpose", "--side-info", "gates"), ["layer by transpose", "image by transpose"]),
        ("sparsity", (), ["3: 0, 3, 6"]),
        (
            "train-decoder",
            ("--stage", "3", "--batch", 2, "--seed", 1, "--steps", 7, "--out", "nowhere"),
            ["2: 0, 3", "2 to train on and 1 to validate on, the first at 16x16", "7 steps", "writes  nowhere"],
        ),
        ("rip", ("--samples", 5), ["5 random codes of each, normalised filters, full output"]),
    ],
)
def test_the_other_verbs(say, verb, words, expected):
    status, out, err = say(verb, *words)
    assert status == 0, err
    assert out.startswith(f"unconv {verb} would do this:")
    assert all(text in out for text in expected)
    assert re.search(r"time    about [\d.]+ s; .* took [\d.]+ s", out)
    assert re.search(r"memory  about \d+ MB", out)
    assert not Path("nowhere").exists()


def test_coherence_needs_no_images(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["coherence", "tiny_networks:vgg", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["stages"]) == ("none", ["0", "3", "6"])
    assert found["seconds"] > 0


@pytest.mark.parametrize(("quick", "expected"), [(10.0, 2 * 5.0), (0.5, 3 * 1.0)])
def test_a_quick_image_is_measured_again_in_its_batch(monkeypatch, quick, expected):
    # three images in batches of two; alone one takes 1 s, two together 5 s
    monkeypatch.setattr(dry_run, "QUICK", quick)
    opened = dry_run._Opened.__new__(dry_run._Opened)
    for name, value in {"images": range(3), "first": [0], "several": [0, 1], "options": Report("x", batch=2)}.items():
        object.__setattr__(opened, name, value)
    memory = Memory(torch.device("cpu"))
    assert opened.over_all(memory, lambda images: {1: 1.0, 2: 5.0}[len(images)]) == expected
    assert not memory.paused


def test_reproduce(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[1])
    words = [
        "reproduce",
        "table2",
        "--model",
        "tiny_networks:vgg",
        "--images",
        str(folder),
        "--out",
        str(tmp_path / "x"),
    ]
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ways"] == ["table2"]
    assert found["out"] == str(tmp_path / "x")
    assert found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fig2", "thm31", "thm33", "table1"])
def test_what_looks_at_no_network_opens_none(monkeypatch, capsys, name):
    monkeypatch.setattr(reproduce, "open_model", pytest.fail)
    assert main(["reproduce", name, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["ways"], found["out"]) == ("none", [name], None)


def test_what_would_fail_fails(say):
    status, out, err = say("invert", "--stage", "9")
    assert (status, out) == (2, "")
    assert "no stage '9'" in err
    assert say("report", "--effort", 0)[0] == 2
    assert say("rip", "--samples", 0)[0] == 2


def test_costs_are_scaled_by_the_convolutions_on_the_way(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import tiny_networks

    found = find_stages(tiny_networks.vgg(), torch.zeros(1, 3, 16, 16))
    stages = list(found)
    costs = [12 * 27 * 256, 16 * 108 * 64, 16 * 144 * 64]  # multiplications, counted by hand
    assert [dry_run._work(stage) for stage in stages] == costs
    layer, image = Way("layer", "network", "convex", "switches"), Way("image", "network", "gauss-newton", "gates")
    assert dry_run._times(layer, stages, stages[0], found) == pytest.approx(sum(costs) / costs[0])
    passed = [costs[0], costs[0] + costs[1], sum(costs)]
    assert dry_run._times(image, stages, stages[1], found) == pytest.approx(sum(passed) / passed[1])
    assert dry_run._typical(stages).name == "0"


def test_durations_read_well():
    assert [duration(s) for s in (0.25, 42.3, 600, 9000)] == ["0.2 s", "42 s", "10 min", "2 h 30 min"]
