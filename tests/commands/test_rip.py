"""``unconv rip`` on networks that have no bracket: one line each, with the stage's name and a way out."""

import json
from pathlib import Path

import pytest
import torch

from unconv.cli import main

PRUNED = """
import sys
sys.path.insert(0, {folder!r})
from tiny_networks import unpadded, vgg

def pruned():
    net = vgg()
    net[3].weight.data[2] = 0
    return net

def broken():
    net = vgg()
    net[3].weight.data[1] = float("nan")
    return net
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    (tmp_path / "pruned_networks.py").write_text(PRUNED.format(folder=str(Path(__file__).parents[1])))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        status = main(["rip", *map(str, words), "--samples", "20"])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pruned_networks:pruned", "--size", 16, "--k", 4), "stage '3': filter 2 of 16 is zero"),
        (("pruned_networks:pruned", "--size", 16, "--k", 4, "--filters", "learned"), "filter 2 of 16 is zero"),
        (("pruned_networks:vgg", "--size", 16, "--k", 769), "--k is 769, but stage '0' has 768 regions"),
        (("pruned_networks:unpadded", "--size", 4, "--k", 1), "4"),
    ],
)
def test_bad_input_is_one_line(call, words, message):
    status, out, err = call(*words)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (status, out, len(lines)) == (1, "", 1), err
    assert lines[0].startswith("unconv: ")
    assert message in lines[0]


def test_filters_that_are_not_finite_are_one_line(call):
    status, out, err = call("pruned_networks:broken", "--size", 16, "--k", 4, "--stages", 3)
    assert (status, out) == (1, "")
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("unconv: ")]) == 1


def test_the_ways_out_work(call):
    status, out, err = call("pruned_networks:pruned", "--size", 16, "--k", 4, "--stages", 0, 6, "--json")
    assert status == 0, err
    assert [s["stage"] for s in json.loads(out)["stages"]] == ["0", "6"]
    status, out, err = call("pruned_networks:pruned", "--size", 16, "--k", 4, "--effort", 0, "--json")
    assert status == 0, err
    assert [s["delta"]["upper"] for s in json.loads(out)["stages"]] == [None] * 3


def test_gaussian_filters_of_a_pruned_stage_have_a_bracket(call):
    words = ("pruned_networks:pruned", "--size", 16, "--k", 2, "--stages", 3, "--filters", "gaussian", "--json")
    status, out, err = call(*words)
    assert status == 0, err
    (stage,) = json.loads(out)["stages"]
    assert 0 < stage["delta"]["lower"] <= stage["delta"]["upper"]
    assert torch.isfinite(torch.tensor(stage["delta"]["upper"]))
