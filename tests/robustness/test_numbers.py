"""Numbers that hold: one bad image stays one, and the same command gives the same bytes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unconv.block_extraction import find_conv_blocks
from unconv.inversion.methods import InversionMethod, invert_batch
from unconv.tracing import capture_inputs as capture

# what docs/robustness.md promises of relative errors; PSNR in decibels and SSIM follow from the same images
BATCH_TOLERANCE = 1e-4
DOUBLE_TOLERANCE = 1e-5


def rows(run):
    return pq.read_table(run / "results.parquet").to_pylist()


def differences(one, other):
    """Largest difference of each number over equal rows, of relative errors relative to themselves."""
    a, b = rows(one), rows(other)
    names = [name for name in a[0] if name not in {"relative_error", "psnr", "ssim", "status"}]
    assert [[r[n] for n in names] for r in a] == [[r[n] for n in names] for r in b]
    assert [r["relative_error"] is None for r in a] == [r["relative_error"] is None for r in b]
    pairs = [(r, s) for r, s in zip(a, b, strict=True) if r["relative_error"] is not None]
    assert pairs
    return max(abs(r["relative_error"] - s["relative_error"]) / r["relative_error"] for r, s in pairs)


# an image that breaks the network's numbers


def test_an_image_that_makes_nan_is_skipped_by_name_and_the_others_stay(server, place, words):
    Image.new("RGB", (16, 16)).save(place / "in" / "1b-black.png")
    words = [{"tiny:net": "tiny:dividing"}.get(word, word) for word in words]
    words[words.index("--batch") + 1] = "4"
    ended = server.run(*words, "--json", cwd=place)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    (skipped,) = found["skipped_images"]
    assert skipped["file"] == "1b-black.png"
    assert "stage second has NaN or infinite values" in skipped["reason"]
    assert {row["file"] for row in rows(place / "run")} == {f"{i}.png" for i in range(4)}
    inverted = [way["images"] for stage in found["stages"] for way in stage["inversion"] if way["from"] == "layer"]
    assert set(inverted) == {4}


def test_an_overflow_behind_the_last_stage_is_skipped_by_name(server, place):
    for name, level in (("dim", 1), ("bright", 255)):
        Image.new("RGB", (16, 16), (level, level, level)).save(place / "in" / f"{name}.png")
    ended = server.run("sparsity", "tiny:overflowing", "--images", "in", "--batch", "9", "--json", cwd=place)
    assert ended.status == 0, ended.err
    assert "skipped bright.png: stage 3 makes NaN or infinite values of it" in ended.err
    assert "dim.png" not in ended.err


def test_an_image_of_zeros_and_a_pruned_filter_do_not_stop_a_run(server, place, words):
    Image.new("RGB", (16, 16)).save(place / "in" / "1b-black.png")
    words = [{"tiny:net": "tiny:pruned"}.get(word, word) for word in words]
    ended = server.run(*words, "--json", cwd=place)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["skipped_images"] == []
    assert found["stages"][0]["coherence"]["learned"]["signed"] is None
    black = [row for row in rows(place / "run") if row["file"] == "1b-black.png" and row["stage"] == "0"]
    assert black
    assert all(row["relative_error"] in {None, 0.0} for row in black)


def test_the_first_image_may_be_too_small(server, place, words):
    Image.new("RGB", (2, 2)).save(place / "in" / "00.png")
    ended = server.run(*words, "--json", cwd=place)
    assert ended.status == 0, ended.err
    assert [image["file"] for image in json.loads(ended.out)["skipped_images"]] == ["00.png"]


# the same numbers


def test_the_same_command_gives_the_same_bytes_on_two_threads(server, place, words, undisturbed):
    assert server.run(*words, cwd=place, threads=2).status == 0
    assert (place / "run" / "results.parquet").read_bytes() == undisturbed.results


def test_batches_change_rounding_only(server, place, words, undisturbed):
    words = ["3" if before == "--batch" else word for before, word in zip(("", *words), words)]
    assert server.run(*words, cwd=place).status == 0
    assert differences(undisturbed.folder / "run", place / "run") < BATCH_TOLERANCE


@pytest.mark.parametrize(
    "way",
    [
        InversionMethod("image", "network", "transpose", "switches"),
        InversionMethod("layer", "network", "min-norm", "switches"),
        InversionMethod("layer", "paper", "iht", "switches"),
    ],
    ids=lambda way: f"{way.recovered}-{way.method}",
)
def test_single_precision_is_near_double(way):
    torch.manual_seed(0)
    conv, pool, relu = torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.ReLU
    net = torch.nn.Sequential(conv(3, 6, 3, padding=1), relu(), pool(2), conv(6, 8, 3, padding=1), relu()).eval()
    pixels = torch.tensor(np.random.default_rng(0).random((3, 3, 16, 16)))
    errors = []
    for dtype in (torch.float32, torch.float64):
        module, x = net.to(dtype).requires_grad_(False), pixels.to(dtype)
        stages = find_conv_blocks(module, x[:1])
        found = invert_batch(module, stages, "3", x, capture(module, ["0", "3"], x), way, k=100, region=2)
        gap = (found.estimate - found.reference).double().flatten(1).norm(dim=1)
        errors.append(gap / found.reference.double().flatten(1).norm(dim=1))
    assert errors[0].dtype is torch.float64
    torch.testing.assert_close(errors[0], errors[1], rtol=DOUBLE_TOLERANCE, atol=0)
