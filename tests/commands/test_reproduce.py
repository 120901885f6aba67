"""``unconv reproduce`` end to end on a tiny network: documents, files, the page, one-line errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unconv.cli import main

FAST = ("--samples", 10, "--steps", 5, "--recovered", 1, "--draws", 100)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.chdir(Path(__file__).parents[1])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
        capsys.readouterr()
        status = main(["reproduce", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_one_experiment_as_json_and_as_files(call, photographs, tmp_path):
    words = ("table4", "--model", "tiny_networks:vgg", "--images", photographs, "--out", tmp_path / "out", "--json")
    status, out, err = call(*words)
    assert status == 0, err
    document = json.loads(out)
    assert list(document) == ["name", "paper", "ours", "notes"]
    assert document["name"] == "table4"
    kept = json.loads((tmp_path / "out" / "table4.json").read_text())
    assert kept["ours"] == document["ours"]
    assert kept["command"].startswith("unconv reproduce table4 --model tiny_networks:vgg")
    assert kept["environment"]["packages"]["torch"]


def test_no_network_is_opened_where_none_is_needed(call, tmp_path):
    status, out, err = call("fig2", "--draws", 50, "--out", tmp_path)
    assert status == 0, err
    assert "M_fixed" in out
    assert (tmp_path / "fig2.svg").read_text().startswith("<svg")


def test_without_the_papers_weights_the_bundled_network_is_offered(call, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    status, out, err = call("table2")
    assert (status, out) == (1, "")
    assert err.endswith("give it as --weights FILE, or take the bundled network with --model cifar-vgg\n")


def test_all_makes_a_page_and_names_what_it_leaves_out(call, photographs, tmp_path):
    words = ("all", "--model", "tiny_networks:vgg", "--images", photographs, "--out", tmp_path, "--json", *FAST)
    status, out, err = call(*words)
    assert status == 0, err
    document = json.loads(out)
    assert document["name"] == "all"
    assert set(document["ours"]) == {
        "prop1", "fig1", "fig2", "thm31", "thm33", "table1", "table2", "fig3", "table3", "table4",
    }  # fmt: skip
    assert any(note.startswith("fig4: ") and "train-decoder" in note for note in document["notes"])
    assert any(note.startswith("table1: Not computed now; made by: python -m ") for note in document["notes"])
    assert any(note.startswith("alexnet: ") and "cache" in note for note in document["notes"])
    page = Path(document["page"]).read_text()
    assert all(f'id="{name}"' in page for name in document["ours"])
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href)=[\"']https?:", page)


def test_image_space_with_a_decoder_trained_before(call, photographs, tmp_path):
    words = ["train-decoder", "tiny_networks:vgg", "--stage", "0", "--images", photographs, "--steps", 2]
    assert main([str(word) for word in [*words, "--out", tmp_path / "d"]]) == 0
    given = ("--model", "tiny_networks:vgg", "--images", photographs, "--out", tmp_path / "out")
    decoder = tmp_path / "d" / "decoder.safetensors"
    status, out, err = call("fig4", *given, "--decoders", decoder, "--json")
    assert status == 0, err
    assert list(json.loads(out)) == ["name", "paper", "ours", "notes"]
    with Image.open(tmp_path / "out" / "fig4.png") as sheet:
        assert sheet.width > 200
    assert "pictures" not in json.loads((tmp_path / "out" / "fig4.json").read_text())
    status, out, err = call("table3", *given, "--decoders", decoder)
    assert status == 0, err
    assert "image space" in out
    status, out, err = call("table3", *given[:4], "--decoders", decoder, "--mean", 0.1, "--std", 1)
    assert status == 1
    assert "prepared as" in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("table9",), 2, "table9"),
        (("table4",), 1, "not in torch's cache.*--weights FILE"),
        (("fig2", "--draws", 0), 2, "--draws is 0"),
        (("fig3", "--recovered", -1), 2, "--recovered is -1"),
        (("fig3", "--fractions", 0.1, 1), 2, "--fractions is 0.1 1.0; each is a fraction"),
        (("fig2", "--sizes", 10, 32, 50, 32, 96), 2, "--sizes"),
        (("table3", "--model", "tiny_networks:unpadded"), 1, "pooled stage"),
        (("table2", "--model", "tiny_networks:vgg", "--images", "nowhere"), 2, "nowhere"),
        (("all", "--model", "no-such-model"), 2, "no-such-model"),
        (("fig4", "--model", "tiny_networks:vgg"), 1, "has no decoder at hand; unconv train-decoder"),
        (("table3", "--model", "tiny_networks:vgg", "--decoders", "no.safetensors"), 2, "no decoder no.safetensors"),
    ],
)
def test_errors_are_one_line(call, words, status, message):
    found, out, err = call(*words)
    lines = [line for line in err.splitlines() if line.startswith("unconv: ")]
    assert found == status, err
    assert out == ""
    assert len(lines) == 1, err
    assert re.search(message, lines[0]), err
