import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.models import get_model_weights, list_models

from unconv.errors import UnconvError
from unconv.model_sources import preprocess_of
from unconv.preprocessing import Preprocess, UserPreprocess, of_user


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def published_presets():
    members = [member for name in list_models() for member in get_model_weights(name)]
    members = [member for member in members if type(member.transforms()).__name__ == "ImageClassification"]
    return list({repr(member.transforms()): member for member in members}.values())


@pytest.mark.parametrize("member", published_presets(), ids=repr)
def test_published_weights_prepare_images_as_torchvision_does(member):
    image = photograph(500, 300)
    preprocess = preprocess_of(member)
    torch.testing.assert_close(preprocess(image), member.transforms()(image), rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    resize=st.none() | st.integers(8, 24),
    crop=st.booleans(),
    scale=st.sampled_from([1.0, 255.0]),
)
def test_to_pixels_undoes_the_normalisation(width, height, resize, crop, scale):
    image = photograph(width, height)
    side = 8 if crop and resize is not None else None
    plain = Preprocess(resize, side)(image)
    preprocess = Preprocess(resize, side, (0.1, 0.2, 0.3), (0.5, 0.7, 0.9), scale)
    batch = preprocess(image)[None]
    torch.testing.assert_close(preprocess.to_pixels(batch)[0], plain, rtol=0, atol=1e-6)


def test_bgr_flips_before_the_mean_is_subtracted():
    preprocess = Preprocess(mean=(1.0, 2.0, 3.0), bgr=True)
    x = preprocess(Image.new("RGB", (2, 2), (255, 0, 51)))
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([0.2 - 1, 0.0 - 2, 1.0 - 3]))
    torch.testing.assert_close(preprocess.to_pixels(x)[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_a_narrow_strip_is_not_blown_up_beyond_pillows_limit():
    strip = Image.new("RGB", (30_000, 1))
    with pytest.raises(UnconvError, match=r"30000x1 pixels are too narrow to resize to 224"):
        Preprocess(resize=224, crop=224)(strip)


def test_a_users_function_is_used_and_its_range_mapped_by_the_original():
    preprocess = of_user(lambda image: torch.tensor(np.asarray(image)).permute(2, 0, 1) * 2 - 7)
    x = preprocess(photograph(6, 5))
    assert x.shape == (3, 5, 6)
    assert x.dtype == torch.float32
    pixels = preprocess.to_pixels(x[None] + 3, x[None])
    torch.testing.assert_close(pixels, (x[None] + 3 - x.min()) / (x.max() - x.min()))
    assert preprocess.describe()["function"].endswith("<lambda>")


@pytest.mark.parametrize(
    "function",
    [
        transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))]),
        transforms.Compose([transforms.ToTensor(), lambda x: x * 255, transforms.Normalize((99, 98, 97), (2, 3, 4))]),
        get_model_weights("resnet18")["DEFAULT"].transforms(),
    ],
    ids=["unit", "bytes", "preset"],
)
def test_the_inverse_is_read_off_a_final_normalize(function):
    preprocess = of_user(function)
    image = photograph(300, 260)
    resized = Preprocess(256, 224)(image) if not hasattr(function, "transforms") else Preprocess()(image)
    torch.testing.assert_close(preprocess.to_pixels(preprocess(image)), resized, rtol=0, atol=1e-5)


def test_something_that_cannot_be_called_is_refused():
    with pytest.raises(UnconvError, match="preprocess is a str"):
        of_user("resize")  # pyright: ignore


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda image: image, "returned Image"),
        (lambda image: torch.zeros(3), "returned shape"),
        (lambda image: torch.zeros(2, 3, 4, 4), "returned shape"),
        (lambda image: torch.zeros(3, 0, 4), "returned shape"),
        (lambda image: torch.full((3, 4, 4), float("nan")), "NaN"),
        (lambda image: torch.zeros(3, 4, 4, dtype=torch.complex64), "complex"),
        (lambda image: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_a_users_function_may_not_return(function, reason):
    with pytest.raises(UnconvError, match=reason):
        UserPreprocess(function)(photograph(4, 4))
