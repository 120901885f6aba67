import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unconv import images
from unconv.errors import UnconvError, UsageError
from unconv.images import (
    ImageStream,
    InMemoryImages,
    SkippedImage,
    find_images,
    picture_note,
    psnr,
    quality,
    read_image,
    save_image,
    ssim,
    to_uint8,
)
from unconv.io import display_name
from unconv.preprocessing import Preprocess


def noise(width: int = 12, height: int = 10, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def picture(width: int = 12, height: int = 10, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(width, height, seed=seed))


def stream(paths: list[Path], **options) -> ImageStream:
    return ImageStream(paths, Preprocess(), **options)


# names


def test_names_are_relative_to_the_root_and_print_on_one_line():
    name = os.fsdecode(b"sub/it's \"<b>\n\x1b[31m\xff\\.jpg") + "\u202eé"
    assert display_name(Path("/data", name), "/data") == ("sub/it's \"<b>\\n\\x1b[31m\\xff\\\\.jpg\\u202eé")
    assert display_name("/data/x.png", "/other") == "/data/x.png"


# finding


def test_images_are_found_in_every_folder_in_the_order_of_their_bytes(tmp_path):
    names = ["b.JPG", "a.png", "deep/er/c.TiFf", "deep/a.webp", "B.gif", "notes.txt", "archive.zip", "png", "é.ppm"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["B.gif", "a.png", "b.JPG", "deep/a.webp", "deep/er/c.TiFf", "é.ppm"]


@pytest.mark.parametrize("name", ["missing", "missing/x.jpg", "file.png/x.jpg", "nul\0byte"])
def test_a_folder_that_does_not_exist_is_wrong_usage(tmp_path, name):
    (tmp_path / "file.png").touch()
    with pytest.raises(UsageError, match=r"no folder or file .*; give a folder of images"):
        find_images(tmp_path / name)


def test_an_empty_folder_says_what_is_looked_for(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UnconvError, match=r"no images in .*\.jpg .*\.webp"):
        find_images(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named_not_passed_over(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    picture().save(tmp_path / "x.png")
    scandir = os.scandir

    def deny(path):
        if Path(path) in denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in denied)
    denied = {closed}
    flow = stream(find_images(tmp_path), root=tmp_path)
    assert [batch.names for batch in flow] == [("x.png",)]
    assert flow.skipped == [SkippedImage("closed", "a folder that cannot be listed")]
    denied = {tmp_path}
    with pytest.raises(UnconvError, match=r"cannot list .*: permission denied"):
        find_images(tmp_path)


# reading


@pytest.mark.parametrize("suffix", images.EXTENSIONS)
def test_every_extension_that_is_looked_for_can_be_read(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    picture().convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (12, 10))


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    values = np.array([[0, 128, 129, 257], [256 * 128, 65_000, 65_406, 65_535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for name in ["x.png", "x.tif"]:
        Image.fromarray(values).save(tmp_path / name)
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(image)[..., 1], expected)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = noise(channels=4)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    alpha = rgba[..., 3:] / 255.0
    image = read_image(tmp_path / "rgba.png")
    np.testing.assert_allclose(np.asarray(image), rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1.01)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_is_seen(tmp_path, mode):
    black = Image.new(mode, (4, 4), (0, 0) if mode == "LA" else 0)
    if mode != "LA":
        black.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    black.save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png")).min() == 255


def test_exif_rotation_is_applied(tmp_path):
    upright, exif = noise(5, 4), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.png")), upright)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.jpg", kind, save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "x.jpg")
    assert np.abs(np.asarray(image)[8, 8].astype(int) - [255, 0, 0]).max() <= 3


# streaming


def test_batches_keep_the_order_and_hold_one_size_each(tmp_path):
    sizes = [(12, 10), (12, 10), (12, 10), (8, 9), (12, 10), (8, 9), (8, 9)]
    for i, size in enumerate(sizes):
        picture(*size, seed=i).save(tmp_path / f"{i}.png")
    flow = stream(find_images(tmp_path), batch_size=2, root=tmp_path)
    for _ in range(2):
        batches = list(flow)
        assert [b.indices for b in batches] == [(0, 1), (2,), (3,), (4,), (5, 6)]
        assert [b.names for b in batches][-1] == ("5.png", "6.png")
        for batch in batches:
            for i, x in zip(batch.indices, batch.inputs, strict=True):
                expected = torch.tensor(noise(*sizes[i], seed=i)).permute(2, 0, 1) / 255
                torch.testing.assert_close(x, expected, rtol=0, atol=0)
    assert len(flow) == 7
    assert flow.skipped == []


def test_what_the_preprocessing_refuses_is_skipped(tmp_path):
    picture(9, 9).save(tmp_path / "a.png")
    picture(5, 5).save(tmp_path / "b.png")
    flow = ImageStream(find_images(tmp_path), Preprocess(crop=8), root=tmp_path)
    assert [batch.names for batch in flow] == [("a.png",)]
    assert flow.skipped == [SkippedImage("b.png", "5x5 pixels are less than the crop of 8; use a larger image")]


def test_nothing_usable_at_all_is_an_error_unless_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").touch()
    with pytest.raises(UnconvError, match=r"none of the 2 images could be used; the first, a\.png: not an image"):
        list(stream(find_images(tmp_path), root=tmp_path))
    flow = stream(find_images(tmp_path), need_one=False)
    assert list(flow) == list(stream([], need_one=False)) == []
    assert len(flow.skipped) == 2


def test_a_failing_machine_stops_the_pass_instead_of_skipping_everything(tmp_path, monkeypatch):
    picture().save(tmp_path / "x.png")

    def exhausted(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(images, "open", exhausted, raising=False)
    with pytest.raises(UnconvError, match=r"cannot go on reading images at .*x\.png: too many open files"):
        list(stream([tmp_path / "x.png"], need_one=False))


def test_a_folder_that_vanishes_stops_the_pass(tmp_path):
    folder = tmp_path / "mount"
    folder.mkdir()
    for i in range(3):
        picture().save(folder / f"{i}.png")
    batches = iter(stream(find_images(folder), batch_size=1))
    next(batches)
    shutil.rmtree(folder)
    with pytest.raises(UnconvError, match="cannot go on"):
        next(batches)


# writing


def test_a_png_holds_the_rounded_and_clipped_pixels(tmp_path):
    pixels = torch.linspace(-0.2, 1.2, 3 * 7 * 5).reshape(3, 7, 5)
    save_image(pixels, tmp_path / "x.png")
    written = np.asarray(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(written, (pixels.double().clamp(0, 1) * 255).round().permute(1, 2, 0).numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_writing_replaces_a_file_whole_and_leaves_nothing_behind_on_failure(tmp_path, monkeypatch):
    save_image(torch.zeros(3, 4, 4), tmp_path / "x.png")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnconvError, match=r"cannot write .*x\.png: no space left on device; make room"):
            save_image(torch.ones(3, 4, 4), tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "x.png")).max() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    save_image(torch.ones(3, 4, 4), tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "x.png")).min() == 255


# quality


def test_psnr_is_its_formula_on_clipped_pixels():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 9, 11, generator=generator)
    b = a + 0.3 * torch.randn(a.shape, generator=generator)
    decibels, _ = quality(a, b)
    mse = (b.clamp(0, 1) - a).double().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(decibels, -10 * mse.log10())
    assert psnr(a[0], a[0]) == float("inf")


def test_ssim_is_its_formula_where_one_window_covers_the_image():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 3, 7, 7, generator=generator).double()
    x, y = a.flatten(1), b.flatten(1)
    covariance = ((x - x.mean(1, keepdim=True)) * (y - y.mean(1, keepdim=True))).sum(1) / 48
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * x.mean(1) * y.mean(1) + c1) * (2 * covariance + c2)
    expected /= (x.mean(1) ** 2 + y.mean(1) ** 2 + c1) * (x.var(1) + y.var(1) + c2)
    assert ssim(a, b) == pytest.approx(expected.mean().item(), abs=1e-9)


@pytest.mark.parametrize("size", [(3, 3), (4, 20), (6, 5), (7, 7), (8, 30)])
def test_ssim_of_small_images_is_one_for_equal_and_less_for_others(size):
    a = torch.rand(3, *size, generator=torch.Generator().manual_seed(2))
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < 0.5


def test_quality_that_cannot_be_measured_is_nan():
    tiny = torch.rand(1, 3, 2, 9)
    assert quality(tiny, tiny)[1].isnan().all()
    good, bad = torch.rand(1, 3, 9, 9), torch.full((1, 3, 9, 9), float("nan"))
    assert all(measure.isnan().all() for measure in quality(good, bad))


# in memory


def test_pictures_in_memory_are_prepared_like_files(tmp_path):
    rgba = Image.fromarray(noise(channels=4), "RGBA")
    deep = Image.fromarray(np.arange(0, 60_000, 500, dtype=np.uint16).reshape(10, 12))
    for i, image in enumerate([picture(), rgba, deep]):
        image.save(tmp_path / f"{i}.png")
    (files,) = stream(find_images(tmp_path))
    (memory,) = InMemoryImages([noise(), rgba, deep], Preprocess())
    torch.testing.assert_close(memory.inputs, files.inputs, rtol=0, atol=0)
    assert memory.names == ("image-0000", "image-0001", "image-0002")
    assert memory.indices == (0, 1, 2)


def test_one_picture_needs_no_list():
    for one in (noise(), noise(channels=4), noise()[:, :, 0]):
        assert InMemoryImages(one, Preprocess()).digest() == InMemoryImages([one], Preprocess()).digest()


def test_tensors_in_memory_are_what_the_network_receives():
    batch = torch.randn(5, 4, 6, 7, dtype=torch.float64)
    for given in (batch, batch.numpy(), list(batch), [x.numpy() for x in batch]):
        flow = InMemoryImages(given, Preprocess(resize=3), batch_size=2, limit=3)
        assert [b.indices for b in flow] == [(0, 1), (2,)]
        torch.testing.assert_close(torch.cat([b.inputs for b in flow]), batch[:3].float())
        assert flow.digest() == InMemoryImages(batch[:3], Preprocess()).digest()
        assert [b.indices for b in flow.block(range(2, 3))] == [(2,)]
    assert flow.digest() != InMemoryImages(batch[:2], Preprocess()).digest()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        (torch.zeros(3, 4, 4), r"images have shape \(3, 4, 4\); give a batch \(N, C, H, W\) or a list of \(C, H, W\)"),
        (np.zeros((4, 4, 3)), r"images have shape \(4, 4, 3\); give a batch"),
        ([torch.zeros(4, 4)], r"image-0000 is a torch.float32 tensor of shape \(4, 4\); give \(C, H, W\)"),
        ([torch.zeros(3, 4, 4, dtype=torch.complex64)], "complex64"),
        ([np.zeros((3, 4, 5), np.uint8)], r"uint8 array of shape \(3, 4, 5\); give paths, PIL images, uint8 arrays"),
        (["x.png", 3], "image-0000 is a str; give paths, PIL"),
    ],
)
def test_what_is_no_image_in_memory_is_said(images, message):
    with pytest.raises(UsageError, match=message):
        InMemoryImages(images, Preprocess())


def test_pictures_of_other_channels_show_three_or_a_mean():
    thirteen = torch.rand(13, 5, 5)
    np.testing.assert_array_equal(to_uint8(thirteen), to_uint8(thirteen[:3]))
    two = torch.stack([torch.zeros(5, 5), torch.ones(5, 5)])
    assert (to_uint8(two) == 128).all()
    assert picture_note(1) is picture_note(3) is None
    assert "first three of the 13 channels" in str(picture_note(13))
    assert "grey mean of the 2 channels" in str(picture_note(2))
