"""Numbers that hold: one bad image stays one, and the same command gives the same results."""

import numpy as np
import pytest
import torch
from faults import results, run
from PIL import Image

import unconv

pytestmark = pytest.mark.slow  # minutes of whole runs: make test-faults

# what docs/robustness.md promises of relative errors; PSNR in decibels and SSIM follow from the same images
ROUNDING = 1e-4
DOUBLE_TOLERANCE = 1e-5


def test_an_image_that_makes_nan_is_skipped_by_name_and_the_others_stay(place, words):
    Image.new("RGB", (16, 16)).save(place / "in" / "1b-black.png")
    words = ("report", "tiny:dividing", *words[2:], "--layers", "first", "second", "--batch", "4")
    found = run(*words, "--json", cwd=place).document
    (skipped,) = found["skipped_images"]
    assert skipped["file"] == "1b-black.png"
    assert "NaN or infinite values" in skipped["reason"]
    assert {row["file"] for row in results(place / "run")} == {f"{i}.png" for i in range(4)}
    assert {summary["images"] for layer in found["layers"] for summary in layer["inversion"]} == {4}


def test_an_overflow_behind_the_last_block_is_skipped_by_name(place):
    for name, level in (("dim", 1), ("bright", 255)):
        Image.new("RGB", (16, 16), (level, level, level)).save(place / "in" / f"{name}.png")
    ended = run("sparsity", "tiny:overflowing", "--images", "in", "--batch", "9", "--json", cwd=place)
    assert ended.status == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("skipped bright.png: ")]
    assert "NaN or infinite values" in line
    assert "dim.png" not in ended.err


def test_an_image_of_zeros_and_a_pruned_filter_do_not_stop_a_run(place, words):
    Image.new("RGB", (16, 16)).save(place / "in" / "1b-black.png")
    found = run("report", "tiny:pruned", *words[2:], "--json", cwd=place).document
    assert found["skipped_images"] == []
    assert 0 < found["layers"][0]["block"]["coherence"]["learned"]["signed"] < 1  # of the filters that are left
    black = [row for row in results(place / "run") if row["file"] == "1b-black.png"]
    assert black
    assert all(row["relative_error"] is None or row["status"] for row in black)


def test_the_first_image_may_be_too_small(place, words):
    Image.new("RGB", (2, 2)).save(place / "in" / "00.png")
    found = run(*words, "--json", cwd=place).document
    assert [image["file"] for image in found["skipped_images"]] == ["00.png"]


@pytest.mark.parametrize(("options", "threads"), [((), 2), (("--batch", "3"), 1)], ids=["threads", "batches"])
def test_threads_and_batches_change_rounding_only(place, words, undisturbed, options, threads):
    ended = run(*words, *options, cwd=place, threads=threads)
    assert ended.status == 0, ended.err
    pairs = list(zip(undisturbed.results, results(place / "run"), strict=True))
    numbers = {"relative_error", "expected_error", "psnr", "ssim", "status", "passes"}
    for a, b in pairs:
        assert {k: v for k, v in a.items() if k not in numbers} == {k: v for k, v in b.items() if k not in numbers}
        assert b["relative_error"] == pytest.approx(a["relative_error"], rel=ROUNDING)


@pytest.mark.parametrize(
    ("layer", "task"),
    [
        ("3", {"method": "transpose", "side_info": "switches"}),
        ("3", {"method": "min-norm", "recover": "input", "side_info": "switches"}),
        ("3", {"method": "iht", "recover": "input", "code": "paper", "side_info": "switches", "region": 2, "k": 100}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_single_precision_is_near_double(layer, task):
    torch.manual_seed(0)
    conv, pool, relu = torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.ReLU
    net = torch.nn.Sequential(conv(3, 6, 3, padding=1), relu(), pool(2), conv(6, 8, 3, padding=1), relu()).eval()
    pixels = torch.tensor(np.random.default_rng(0).random((3, 3, 16, 16)))
    single, double = (
        unconv.invert(net.to(dtype), layer, pixels.to(dtype), **task).relative_error
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single, double, rtol=DOUBLE_TOLERANCE, atol=0)
