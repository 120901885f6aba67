"""Committed results and decoders: found where they belong, named where they are missing."""

import pytest

from unconv.errors import UnconvError, UsageError
from unconv.experiments import committed


def test_decoders_of_this_network_are_found_and_others_passed_over(subject, decoder_file, tmp_path):
    assert list(committed.open_decoders(subject, [], decoder_file.parent)) == ["2"]
    assert committed.open_decoders(subject, [], tmp_path / "nowhere") == {}
    subject.network.module[0].weight.mul_(2)
    assert committed.open_decoders(subject, [], decoder_file.parent) == {}


def test_given_decoders_must_belong(subject, decoder_file, tmp_path):
    found = committed.open_decoders(subject, [decoder_file], tmp_path / "nowhere")
    assert found["2"].describe() == {"file": "tiny-2.safetensors", "stage": "2", "config": {"steps": 0}}
    with pytest.raises(UsageError, match="no decoder"):
        committed.open_decoders(subject, [tmp_path / "no.safetensors"], tmp_path / "nowhere")
    subject.network.module[0].weight.mul_(2)
    with pytest.raises(UnconvError, match="another network"):
        committed.open_decoders(subject, [decoder_file], tmp_path / "nowhere")


def test_a_missing_result_names_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    with pytest.raises(UnconvError, match=r"table1.json is not there.*python -m x"):
        committed.committed_result("table1", "python -m x")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table1.json").write_text('{"name": "table1"}')
    assert committed.committed_result("table1", "python -m x") == {"name": "table1"}
