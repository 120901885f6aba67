"""Training a what-where decoder: it learns, it is reproducible, and it is bound to its encoder."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unconv.errors import UnconvError, UsageError
from unconv.evaluate.decoder_training import (
    CHECKPOINT,
    FINAL,
    Photographs,
    Recipe,
    split,
    train,
    validation_pictures,
)
from unconv.evaluate.decoders import decoder_chain, encoder_sha256, open_decoder
from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import RunDirectory
from unconv.models import load_model
from unconv.preprocessing import Preprocess

RECIPE = Recipe(steps=30, batch=4, rate=1e-2, held_out=0.25, every=10)


@pytest.fixture
def paths(tmp_path, smooth_pictures):
    (tmp_path / "in").mkdir()
    return smooth_pictures(tmp_path / "in", 12)


@pytest.fixture
def tiny(monkeypatch):
    """One of the tiny networks, by name."""
    monkeypatch.chdir(Path(__file__).parents[1])
    return lambda name: load_model(f"tiny_networks:{name}").module


@pytest.fixture
def network(tiny):
    return Network(tiny("vgg"), Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3))


def learn(network, paths, out, recipe=RECIPE, stage="3"):
    photographs = Photographs(network, paths, recipe.crop)
    chain = decoder_chain(network.stages((3, recipe.crop or 16, recipe.crop or 16)), stage)
    run = RunDirectory(out, {"recipe": dataclasses.asdict(recipe)})
    try:
        return train(network, chain, photographs, recipe, run, lambda what, units: None), chain, photographs
    finally:
        run.close()


def test_it_learns_and_says_how(network, paths, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=120, every=40)
    found, chain, photographs = learn(network, paths, tmp_path / "run", recipe)
    assert [row["step"] for row in found["curve"]] == [40, 80, 120]
    assert found["curve"][-1]["validation_loss"] < found["curve"][0]["validation_loss"]
    assert found["images"] == {"training": 9, "held_out": 3}
    true, decoded = validation_pictures(network, chain, photographs, recipe, tmp_path / "run" / FINAL)
    _, held_out = split(12, recipe)
    assert torch.equal(true, network.preprocess.to_pixels(photographs.batch(held_out)))
    x = photographs.batch(held_out)
    error = (decoded - true).mul(4).square().mean()  # std 0.25: from pixels to what the network reads
    assert error.item() == pytest.approx(found["validation"]["loss"], rel=1e-3)
    assert x.shape == decoded.shape
    assert found["validation"]["loss"] < 0.5 * x.var(correction=0).item()  # what the mean of all pixels would leave


def test_nothing_held_out_is_trained_on():
    training, held_out = split(10, RECIPE)
    assert sorted(training + held_out) == list(range(10))
    assert len(held_out) == 2
    with pytest.raises(UnconvError, match="at least two"):
        split(1, RECIPE)


def test_stopping_between_checkpoints_changes_nothing(network, paths, tmp_path, monkeypatch):
    whole, _, _ = learn(network, paths, tmp_path / "whole")
    read = Photographs.batch
    calls = []

    def stumble(self, numbers, generator=None):
        calls.append(generator)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return read(self, numbers, generator)

    with monkeypatch.context() as patch:
        patch.setattr(Photographs, "batch", stumble)
        with pytest.raises(KeyboardInterrupt):
            learn(network, paths, tmp_path / "run")
    torch.manual_seed(99)
    again, _, _ = learn(network, paths, tmp_path / "run")
    assert again["resumed_from"] == 20
    assert again["curve"] == whole["curve"]
    finals = [load_file(tmp_path / name / FINAL) for name in ("whole", "run")]
    assert all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())


def test_a_finished_run_is_not_trained_again(network, paths, tmp_path):
    first, _, _ = learn(network, paths, tmp_path / "run")
    second, _, _ = learn(network, paths, tmp_path / "run")
    assert second["resumed_from"] == RECIPE.steps
    assert second["curve"] == first["curve"]


def test_a_damaged_checkpoint_is_one_line(network, paths, tmp_path):
    learn(network, paths, tmp_path / "run")
    file = tmp_path / "run" / CHECKPOINT
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UnconvError, match="remove it to train from the start"):
        learn(network, paths, tmp_path / "run")


def test_crops_are_drawn_by_step_and_small_images_skipped(network, tmp_path, smooth_pictures):
    (tmp_path / "in").mkdir()
    paths = smooth_pictures(tmp_path / "in", 3, (20, 18))
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "small.png")
    photographs = Photographs(network, [*paths, tmp_path / "in" / "small.png"], 8, tmp_path / "in")
    draw = [photographs.batch([0, 3, 1], torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draw[0].shape == (2, 3, 8, 8)
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert photographs.skipped["small.png"].reason == "4x4 pixels are less than the crop of 8"
    whole = Photographs(network, paths).batch([0])
    assert torch.equal(photographs.batch([0])[0], whole[0, :, 5:13, 6:14])


def test_images_of_different_sizes_need_a_crop_or_a_size(network, tmp_path, smooth_pictures):
    (tmp_path / "in").mkdir()
    smooth_pictures(tmp_path / "in", 1)
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "other.png")
    with pytest.raises(UnconvError, match=r"--size.*--crop"):
        Photographs(network, sorted((tmp_path / "in").iterdir())).batch([0, 1])


def test_the_hash_is_of_the_encoder_alone(network):
    stages = network.stages((3, 16, 16))
    before = encoder_sha256(network, decoder_chain(stages, "3"))
    network.module[6].weight.add_(1)  # behind the stage
    assert encoder_sha256(network, decoder_chain(stages, "3")) == before
    network.module[4].running_mean.add_(1)  # the stage's batch norm
    assert encoder_sha256(network, decoder_chain(stages, "3")) != before


def test_a_decoder_of_another_network_stage_or_preparation_is_refused(network, paths, tmp_path):
    _, chain, _ = learn(network, paths, tmp_path / "run", dataclasses.replace(RECIPE, steps=1))
    file = tmp_path / "run" / FINAL
    assert open_decoder(file, network, chain).training is False
    with pytest.raises(UnconvError, match="decodes stage 3, not 0"):
        open_decoder(file, network, chain[:1])
    darker = Network(network.module, Preprocess(mean=(0.1,) * 3, std=(0.25,) * 3))
    with pytest.raises(UnconvError, match="prepared as"):
        open_decoder(file, darker, chain)
    larger = Network(network.module, Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert open_decoder(file, larger, chain).layers[0].stage == "3"
    network.module[0].weight.mul_(2)
    with pytest.raises(UnconvError, match="another network"):
        open_decoder(file, network, chain)


def test_stages_without_a_chain_are_refused(tiny):
    stages = Network(tiny("residual"), Preprocess()).stages((3, 16, 16))
    with pytest.raises(UnconvError, match=r"no mirrored decoder.*plain chain"):
        decoder_chain(stages, "head")
    with pytest.raises(UsageError, match="no stage"):
        decoder_chain(stages, "nowhere")
