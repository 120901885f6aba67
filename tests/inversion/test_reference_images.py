"""Reference images: any shape, the same for a seed, and none that is under test."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unconv.errors import UnconvError
from unconv.inversion.reference_images import (
    DeadLeavesConfig,
    dead_leaves,
    other_images,
    packaged_photographs,
    reference_images,
    shows_one_of,
)

QUICK = DeadLeavesConfig(shapes=40)


@pytest.mark.parametrize("shape", [(3, 24, 31), (1, 40), (13, 9, 9), (2, 6, 7, 8), (3, 1, 1)])
def test_synthetic_images_of_any_shape(shape):
    images = dead_leaves(2, shape, config=QUICK)
    assert images.shape == (2, *shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_seed_gives_the_same_images_whatever_the_count():
    assert torch.equal(dead_leaves(1, (3, 20, 20), config=QUICK), dead_leaves(3, (3, 20, 20), config=QUICK)[:1])
    assert not torch.equal(
        dead_leaves(1, (3, 20, 20), config=QUICK, seed=0), dead_leaves(1, (3, 20, 20), config=QUICK, seed=1)
    )


def test_no_images_and_no_shape():
    assert dead_leaves(0, (3, 8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(UnconvError, match="expected channels"):
        dead_leaves(1, (3,))


def test_channels_share_their_luminance_and_the_spectrum_falls():
    images = dead_leaves(6, (3, 64, 64))
    centred = images - images.mean((2, 3), keepdim=True)
    luminance = centred.mean(1, keepdim=True)
    assert (centred - luminance).square().mean() < 0.3 * luminance.square().mean()
    power = torch.fft.fft2(luminance).abs().square().mean((0, 1))
    assert power[1:4, 1:4].mean() > 30 * power[12:20, 12:20].mean()


def test_both_kinds_take_turns():
    found = reference_images((3, 32, 32), synthetic=3, photographs=3, config=QUICK)
    assert found.images.shape == (6, 3, 32, 32)
    assert torch.equal(found.images[::2], dead_leaves(3, (3, 32, 32), config=QUICK))
    assert found.synthetic == 3
    assert found.dropped == 0


def test_where_there_are_no_photographs_synthetic_images_take_their_place():
    found = reference_images((4, 16, 16), synthetic=1, photographs=2, config=QUICK)
    assert found.images.shape == (3, 4, 16, 16)
    assert found.synthetic == 3


def photograph(path):
    """One of the packaged photographs, as numbers from 0 to 1."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize("flip", [False, True])
def test_a_photograph_under_test_is_dropped_whatever_its_crop_and_preprocessing(flip):
    astronaut, chelsea = (photograph(path) for path in packaged_photographs()[:2])
    under_test = F.interpolate(astronaut[..., 20:500, 20:500], (112, 112), mode="bilinear", antialias=True)
    under_test = (under_test - 0.45) / 0.22
    if flip:
        under_test = under_test.flip(-1)
    assert shows_one_of(astronaut[0], under_test)
    assert not shows_one_of(chelsea[0], under_test)
    assert not shows_one_of(astronaut[0], torch.zeros(1, 3, 20, 20))
    found = reference_images((3, 32, 32), synthetic=0, photographs=4, exclude=under_test)
    assert found.dropped == 1
    assert len(found.images) == 4


def test_images_under_test_and_copies_of_them_are_no_reference_images(tmp_path):
    astronaut, chelsea, coffee = (
        F.interpolate(photograph(path), (64, 64), mode="area") for path in packaged_photographs()[:3]
    )
    Image.fromarray((astronaut[0].permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / "copy.jpg", quality=60)
    flat = torch.full_like(coffee, 0.5)
    images = torch.cat([astronaut, photograph(tmp_path / "copy.jpg"), chelsea, coffee, flat, flat + 0.01])
    kept = other_images(images, iter([torch.cat([flat, coffee]), astronaut]))
    assert torch.equal(kept, images[[2, 5]])
