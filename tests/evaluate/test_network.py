"""Images on their way through a network: what is not finite or does not fit stays one image's matter."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unconv.errors import UnconvError
from unconv.evaluate.network import CapturedStream, Network, first_stages
from unconv.images import ImageStream
from unconv.preprocessing import Preprocess


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU())
    return Network(module.eval().requires_grad_(False), Preprocess())


def stream(folder, *sides, batch_size=8):
    paths = [folder / f"{i}.png" for i in range(len(sides))]
    for i, (path, side) in enumerate(zip(paths, sides, strict=True)):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return ImageStream(paths, Preprocess(), batch_size, root=folder)


def test_stages_are_those_of_the_first_image_that_fits(network, tmp_path):
    # at 2 pixels no filter fits, at 5 only those of the first stage
    stages = first_stages(network, stream(tmp_path, 2, 5, 12, 20))
    assert stages.get("0").input_shape == (3, 12, 12)
    assert first_stages(network, stream(tmp_path, 2, 5)).names == ("0",)
    with pytest.raises(UnconvError, match=r"cannot take an input of shape \(1, 3, 2, 2\)"):
        first_stages(network, stream(tmp_path, 2, 1))


@pytest.mark.parametrize("last", ["0", "3"])
def test_what_overflows_behind_the_last_wanted_stage_is_skipped_by_name(network, tmp_path, last):
    for stage in (0, 3):
        network.module[stage].weight.abs_()
        network.module[stage].bias.zero_()
    network.module[int(last)].weight.fill_(3e38)
    images = stream(tmp_path, 12, 12, 12)
    Image.new("RGB", (12, 12)).save(tmp_path / "1.png")
    captured = CapturedStream(network, images, lambda _: (last,))
    assert [part.batch.names for part in captured] == [("1.png",)]
    assert [image.file for image in captured.skipped] == ["0.png", "2.png"]
    assert all(f"stage {last} makes NaN or infinite values" in image.reason for image in captured.skipped)


def test_each_image_by_itself_is_the_batch_in_order(network, tmp_path):
    (captured,) = CapturedStream(network, stream(tmp_path, 12, 12, 12), lambda _: ("0", "3"))
    parts = list(captured.singly())
    assert [part.batch.names for part in parts] == [("0.png",), ("1.png",), ("2.png",)]
    assert [part.batch.indices for part in parts] == [(0,), (1,), (2,)]
    for name, x in captured.inputs.items():
        torch.testing.assert_close(torch.cat([part.inputs[name] for part in parts]), x, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([part.batch.inputs for part in parts]), captured.batch.inputs, rtol=0, atol=0)
