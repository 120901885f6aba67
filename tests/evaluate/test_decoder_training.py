"""Training a what-where decoder: it learns, it is reproducible, and it is bound to its encoder."""

import dataclasses

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import cases
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.decoder_training import CHECKPOINT, FINAL, Recipe, TrainingImages, split, train
from unconv.evaluate.decoders import decoder_chain, encoder_sha256, open_decoder, open_decoders
from unconv.evaluate.network import Network, open_network
from unconv.evaluate.run_directory import RunDirectory
from unconv.preprocessing import Preprocess

RECIPE = Recipe(steps=30, batch=4, rate=1e-2, held_out=0.25, every=10)


@pytest.fixture
def paths(tmp_path, smooth_pictures):
    return smooth_pictures(tmp_path / "in", 12)


@pytest.fixture
def network():
    return Network(cases.vgg().eval().requires_grad_(False), Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3))


def blocks_of(network, side=16):
    return network.conv_blocks(torch.rand(1, 3, side, side))


def learn(network, paths, out, recipe=RECIPE, layer="3", progress=lambda message, units: None):
    opened = open_network(network.module, paths, mean=0.5, std=0.25)
    run = RunDirectory(out, {"recipe": dataclasses.asdict(recipe)})
    try:
        return train(opened, layer, recipe, run, progress)
    finally:
        run.close()


def test_it_learns_and_says_how(network, paths, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=120, every=40)
    found = learn(network, paths, tmp_path / "run", recipe)
    assert [row["step"] for row in found["curve"]] == [40, 80, 120]
    assert found["curve"][-1]["validation_loss"] < found["curve"][0]["validation_loss"]
    assert found["images"] == {"training": 9, "held_out": 3}
    _, held_out = split(12, recipe)
    x = TrainingImages(network, paths).batch(held_out)
    assert found["validation"]["loss"] < 0.5 * x.var(correction=0).item()  # what the mean of all pixels would leave
    assert (tmp_path / "run" / "images" / "held-out.png").is_file()
    opened = open_decoders(network, blocks_of(network), [tmp_path / "run" / FINAL])
    assert list(opened) == ["3"]


def test_nothing_held_out_is_trained_on():
    training, held_out = split(10, RECIPE)
    assert sorted(training + held_out) == list(range(10))
    assert len(held_out) == 2
    with pytest.raises(UnconvError, match="at least two"):
        split(1, RECIPE)


def test_stopping_between_checkpoints_changes_nothing(network, paths, tmp_path):
    whole = learn(network, paths, tmp_path / "whole")

    def stumble(message, units):
        if message.startswith("step 25"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(network, paths, tmp_path / "run", progress=stumble)
    torch.manual_seed(99)
    again = learn(network, paths, tmp_path / "run")
    assert again["resumed_from"] == 20
    assert again["curve"] == whole["curve"]
    finals = [load_file(tmp_path / name / FINAL) for name in ("whole", "run")]
    assert all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())
    # a finished run is not trained again; a damaged checkpoint is one line
    assert learn(network, paths, tmp_path / "run")["resumed_from"] == RECIPE.steps
    file = tmp_path / "run" / CHECKPOINT
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UnconvError, match="remove it to train from the start"):
        learn(network, paths, tmp_path / "run")


def test_crops_are_drawn_by_step_and_small_images_skipped(network, tmp_path, smooth_pictures):
    paths = smooth_pictures(tmp_path / "in", 3, (20, 18))
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "small.png")
    images = TrainingImages(network, [*paths, tmp_path / "in" / "small.png"], 8, tmp_path / "in")
    draw = [images.batch([0, 3, 1], torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draw[0].shape == (2, 3, 8, 8)
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert images.skipped["small.png"].reason == "4x4 pixels are less than the crop of 8"
    whole = TrainingImages(network, paths).batch([0])
    assert torch.equal(images.batch([0])[0], whole[0, :, 5:13, 6:14])


def test_images_of_different_sizes_need_a_crop_or_a_size(network, tmp_path, smooth_pictures):
    smooth_pictures(tmp_path / "in", 1)
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "other.png")
    with pytest.raises(UnconvError, match="give one size, or train on a crop"):
        TrainingImages(network, sorted((tmp_path / "in").iterdir())).batch([0, 1])


def test_the_hash_is_of_the_encoder_alone(network):
    blocks = blocks_of(network)
    before = encoder_sha256(network, decoder_chain(blocks, "3"))
    network.module[6].weight.add_(1)  # behind the block
    assert encoder_sha256(network, decoder_chain(blocks, "3")) == before
    network.module[4].running_mean.add_(1)  # the block's batch norm
    assert encoder_sha256(network, decoder_chain(blocks, "3")) != before


def test_a_decoder_of_another_network_block_or_preparation_is_refused(network, paths, tmp_path):
    learn(network, paths, tmp_path / "run", dataclasses.replace(RECIPE, steps=1))
    chain = decoder_chain(blocks_of(network), "3")
    file = tmp_path / "run" / FINAL
    assert open_decoder(file, network, chain).training is False
    with pytest.raises(UnconvError, match=r"decodes .*3, not 0"):
        open_decoder(file, network, chain[:1])
    darker = Network(network.module, Preprocess(mean=(0.1,) * 3, std=(0.25,) * 3))
    with pytest.raises(UnconvError, match="prepared as"):
        open_decoder(file, darker, chain)
    larger = Network(network.module, Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert open_decoder(file, larger, chain).layers[0].stage == "3"
    network.module[0].weight.mul_(2)
    with pytest.raises(UnconvError, match="another network"):
        open_decoder(file, network, chain)


def test_conv_blocks_without_a_chain_are_refused():
    blocks = blocks_of(Network(cases.residual().eval(), Preprocess()))
    with pytest.raises(UnconvError, match=r"no mirrored decoder.*plain chain"):
        decoder_chain(blocks, "head")
    with pytest.raises(UsageError, match="no conv block"):
        decoder_chain(blocks, "nowhere")
