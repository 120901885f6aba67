"""``unconv reproduce`` end to end on a tiny network: documents, files, one-line errors."""

import json
import re

import pytest

FAST = ("--samples", 10, "--steps", 5, "--recovered", 1, "--draws", 100)
MODEL = ("--model", "cases:vgg")


@pytest.fixture
def reproduce(call, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    return lambda *words: call("reproduce", *words)


def test_no_network_is_opened_where_none_is_needed(reproduce, tmp_path):
    ended = reproduce("fig2", "--draws", 50, "--out", tmp_path)
    assert ended.status == 0, ended.err
    assert "M_fixed" in ended.out
    assert (tmp_path / "fig2.svg").read_text().count("<svg") == 1


def test_without_the_papers_weights_the_bundled_network_is_offered(reproduce):
    ended = reproduce("table2")
    assert ended.status == 1
    assert ended.message.endswith("or take the bundled network with --model cifar-vgg")


def test_all_runs_what_the_model_has(reproduce, photographs, tmp_path):
    document = reproduce("all", *MODEL, "--images", photographs, "--out", tmp_path, "--json", *FAST).document
    assert document["name"] == "all"
    assert set(document["ours"]) == {
        "prop1", "fig1", "fig2", "thm31", "thm33", "table1", "table2", "fig3", "table3", "fig4", "table4",
    }  # fmt: skip
    assert any(note.startswith("table1: Not computed now; made by ") for note in document["notes"])
    kept = json.loads((tmp_path / "table4.json").read_text())
    assert list(kept)[:4] == ["name", "paper", "ours", "notes"]
    assert kept["command"].startswith("unconv reproduce table4 --model cases:vgg")
    assert kept["environment"]["packages"]["torch"]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{name}.json" for name in document["ours"]} | {
        *(f"{name}.svg" for name in ("prop1", "fig1", "fig2", "fig3")),
        "fig4.png",
    }


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("fig2", "--draws", 0), 2, "--draws is 0"),
        (("fig3", "--recovered", -1), 2, "--recovered is -1"),
        (("fig3", "--fractions", 0.1, 1), 2, "--fractions is 0.1 1.0; each is a fraction"),
        (("fig2", "--sizes", 10, 32, 50, 32, 96), 2, "--sizes"),
        (("fig2", "--samples", 10), 2, "--samples has no effect on fig2; it belongs to fig3 and thm33"),
        (("table3", "--model", "cases:unpadded"), 1, "pooled"),
        (("table2", *MODEL, "--images", "nowhere"), 2, "nowhere"),
        (("all", "--model", "no-such-model"), 2, "no-such-model"),
        (("table3", *MODEL, "--decoders", "no.safetensors"), 2, "no decoder no.safetensors"),
    ],
)
def test_errors_are_one_line(reproduce, words, status, message):
    ended = reproduce(*words)
    assert ended.status == status, ended.err
    assert re.search(message, ended.message)
