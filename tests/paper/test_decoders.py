"""Files of trained decoders: found where they belong, refused where they do not."""

import pytest

from unconv.errors import UnconvError, UsageError
from unconv.evaluate.decoders import open_decoders


def test_decoders_of_this_network_are_found_and_others_passed_over(subject, decoder_file, tmp_path):
    assert list(open_decoders(subject.network, subject.stages, [], decoder_file.parent)) == ["2"]
    assert open_decoders(subject.network, subject.stages, [], tmp_path / "nowhere") == {}
    subject.network.module[0].weight.mul_(2)
    assert open_decoders(subject.network, subject.stages, [], decoder_file.parent) == {}


def test_given_decoders_must_belong(subject, decoder_file, tmp_path):
    found = open_decoders(subject.network, subject.stages, [decoder_file], tmp_path / "nowhere")
    assert found["2"].describe() == {"file": "tiny-2.safetensors", "stage": "2", "config": {"steps": 0}}
    with pytest.raises(UsageError, match="no decoder"):
        open_decoders(subject.network, subject.stages, [tmp_path / "no.safetensors"], tmp_path / "nowhere")
    subject.network.module[0].weight.mul_(2)
    with pytest.raises(UnconvError, match="another network"):
        open_decoders(subject.network, subject.stages, [decoder_file], tmp_path / "nowhere")
