"""Files of trained decoders: used where they belong, refused where they do not."""

import pytest

from unconv.errors import UnconvError, UsageError


def test_decoders_must_belong_to_the_network(context, decoder_file, tmp_path):
    decoder = context.open_decoders([decoder_file])["2"]
    assert decoder.describe()["file"] == "tiny-2.safetensors"
    assert context.open_decoders([]) == {}
    with pytest.raises(UsageError, match="no decoder"):
        context.open_decoders([tmp_path / "no.safetensors"])
    context.module[0].weight.mul_(2)
    with pytest.raises(UnconvError, match="another network"):
        context.open_decoders([decoder_file])
