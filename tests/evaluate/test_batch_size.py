"""Out of memory: the batch is halved, the run goes on, said once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from unconv.runs import network as network_module

from unconv.errors import UnconvError
from unconv.evaluate import outcomes
from unconv.evaluate import sparsity_stats as counting
from unconv.evaluate.batch_size import MaxBatchSize, is_out_of_memory, memory_for
from unconv.evaluate.evaluation import EvaluationConfig, survey
from unconv.evaluate.network import Network
from unconv.evaluate.run_directory import Unwritten
from unconv.images import ImageStream
from unconv.inversion.methods import InversionMethod
from unconv.models import load_model

PLAN = EvaluationConfig(("0", "3"), (InversionMethod("layer", "network", "min-norm", "switches"),), 2, 2, 0, 0, 0.05)
ON_THE_CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


ON_A_GPU = torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def network(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    loaded = load_model("tiny_networks:vgg")
    return Network(loaded.module, loaded.preprocess)


@pytest.fixture
def paths(tmp_path):
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.glob("*.png"))


def found_by(network, paths):
    found = survey(network, ImageStream(paths, network.preprocess, 5), PLAN, Unwritten(), lambda *_: None)
    assert found is not None
    return found


def limit(monkeypatch, module, name, most, sizes, error):
    """Let a function fail on more than so many images."""
    real = getattr(module, name)

    def limited(*args, **options):
        images = args[2] if name == "capture" else args[3]
        sizes.append(len(images))
        if len(images) > most:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(module, name, limited)


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError(ON_THE_CPU)], ids=type
)
@pytest.mark.parametrize(("module", "name"), [(outcomes, "invert_batch"), (network_module, "capture")])
def test_the_batch_is_halved_and_the_run_goes_on(network, paths, monkeypatch, capsys, module, name, error):
    undisturbed = found_by(network, paths)
    sizes = []
    limit(monkeypatch, module, name, 2, sizes, error)
    found = found_by(Network(network.module, network.preprocess), paths)
    said = capsys.readouterr().err
    assert said.count("out of memory") == 1
    assert "the run goes on with 2 images at a time" in said
    # what has not fitted once is not tried again
    assert sizes[0] == 5
    assert max(sizes[1:]) <= 2
    assert found.skipped_images == []
    for one, other in zip(undisturbed.rows(), found.rows(), strict=True):
        assert {**one, "seconds": 0, "relative_error": 0, "psnr": 0, "ssim": 0} == {
            **other,
            "seconds": 0,
            "relative_error": 0,
            "psnr": 0,
            "ssim": 0,
        }
        assert one["relative_error"] == pytest.approx(other["relative_error"], rel=1e-4)


def test_an_image_that_does_not_fit_alone_is_named(network, paths, monkeypatch, capsys):
    limit(monkeypatch, outcomes, "invert_batch", 0, [], torch.cuda.OutOfMemoryError("CUDA out of memory"))
    found = found_by(network, paths)
    assert {row["status"] for row in found.rows()} == {
        "there is not enough memory for this image alone; give a smaller --size, or use a larger machine"
    }
    limit(monkeypatch, network_module, "capture", 0, [], RuntimeError(ON_THE_CPU))
    with pytest.raises(
        UnconvError, match=r"none of the 5 images could be used; the first, .*0.png: there is not enough"
    ):
        found_by(network, paths)
    assert capsys.readouterr().err.count("note: out of memory") == 1


def test_other_errors_stay_errors(network, paths, monkeypatch):
    limit(monkeypatch, outcomes, "invert_batch", 0, [], RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        found_by(network, paths)
    assert network.room.most is None


def test_counting_is_halved_too(network, paths, monkeypatch):
    whole = found_by(network, paths)
    real = counting.Activity.update

    def limited(self, stage, activated, pooled=None):
        if len(activated) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        real(self, stage, activated, pooled)

    monkeypatch.setattr(counting.Activity, "update", limited)
    found = found_by(Network(network.module, network.preprocess), paths)
    assert [stage["activation"] for stage in found.stages] == [stage["activation"] for stage in whole.stages]


def test_what_cannot_be_split_is_one_line():
    with (
        pytest.raises(UnconvError, match="not enough memory for the certificate; use a larger machine"),
        memory_for("the certificate"),
    ):
        raise RuntimeError(ON_THE_CPU)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_room_only_shrinks(capsys):
    room = MaxBatchSize()
    for most in (4, 8, 1):
        room.shrink(most)
    assert room.most == 1
    assert replace(room).most == 1
    assert capsys.readouterr().err.count("\n") == 1
