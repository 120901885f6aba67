"""Table 1: features against a loop, what is trained and what is not, the search, and a file that survives a stop."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from unconv.cifar_vgg import CLASSES
from unconv.errors import UnconvError
from unconv.paper import table1
from unconv.paper.table1 import Blocks, Cell, choose, document, extract, load, main, measure_statistics, train

CELL = Cell("random", 2, 3, 8, 0, 6, 1e-2, 0.01, 0.0, "float32", 60, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten classes of 12x12 pictures, each class of its own colour and noise."""
    root = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            colour = np.array([25 * number, 250 - 25 * number, 60 * (number % 4)])
            for i in range(count):
                noisy = np.clip(colour + rng.normal(0, 10, (12, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(folder):
    return load(folder)


def test_the_split_is_a_partition(data, folder):
    assert len(data.training[0]) == 72
    assert len(data.validation[0]) == 8
    assert len(data.test[0]) == 30
    few = load(folder, 20)
    assert torch.equal(few.training[0], data.training[0][:20])
    everything = torch.cat([data.training[0], data.validation[0]]).flatten(1)
    assert len(everything.unique(dim=0)) == 80


def test_random_features_against_the_definition(data):
    network = Blocks(CELL, (3, 12, 12), 10)
    images = data.training[0]
    measure_statistics(network, images)
    h = images
    for number in range(2):
        convolution = network.features[4 * number]
        assert convolution.weight.std().item() == pytest.approx((h.shape[1] * 9) ** -0.5, rel=0.2)
        h = F.conv2d(h, convolution.weight, padding=1).relu()
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        h = F.max_pool2d(h, 2)
    torch.testing.assert_close(extract(network, images, "float32", 7), h.flatten(1), rtol=1e-3, atol=1e-3)
    rough = extract(network, images, "bfloat16", 7)
    assert rough.dtype == torch.bfloat16
    assert (rough - h.flatten(1)).norm() < 0.02 * h.norm()


def test_only_the_classifier_of_random_filters_is_trained():
    random = Blocks(CELL, (3, 12, 12), 10)
    assert {name for name, p in random.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    learned = Blocks(dataclasses.replace(CELL, filters="learned"), (3, 12, 12), 10)
    assert all(p.requires_grad for p in learned.parameters())
    again = Blocks(CELL, (3, 12, 12), 10)
    assert torch.equal(random.features[0].weight, again.features[0].weight)
    other = Blocks(dataclasses.replace(CELL, seed=1), (3, 12, 12), 10)
    assert not torch.equal(random.features[0].weight, other.features[0].weight)


@pytest.mark.parametrize("filters", ["random", "learned"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_kinds_learn_colours(data, filters, dtype):
    cell = dataclasses.replace(CELL, filters=filters, dtype=dtype, epochs=12)
    found = train(cell, data, batch=12)
    assert found["test"] > 0.6
    assert found["test"] * 30 == pytest.approx(round(found["test"] * 30))
    assert train(cell, data, batch=12) | {"seconds": 0} == found | {"seconds": 0}


def test_with_flips_the_mirror_images_are_learned_from_too(data, monkeypatch):
    cell = dataclasses.replace(CELL, flips=True)
    seen = []

    def seeing(learner, cell, x, y, **settings):
        seen.append((x.clone(), y))
        return 0.0

    monkeypatch.setattr(table1, "_fit", seeing)
    train(cell, data)
    ((x, y),) = seen
    images, labels = data.training
    network = Blocks(cell, (3, 12, 12), 10)
    measure_statistics(network, images)
    torch.testing.assert_close(x[len(images) :], extract(network, images.flip(-1), "float32"), rtol=1e-4, atol=1e-4)
    assert torch.equal(y, torch.cat([labels, labels]))


def test_dropped_inputs_are_the_same_for_a_batch_and_right_on_average():
    torch.manual_seed(0)
    layer = table1.DroppingLinear(400, 3, 0.25)
    x = torch.ones(2, 400)
    draws = torch.stack([layer(x) for _ in range(400)])
    assert torch.equal(draws[:, 0], draws[:, 1])
    expected = layer.eval()(x)
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.15)
    assert isinstance(layer, nn.Linear)


def cell(seed, validation, test, **fields):
    return dataclasses.asdict(dataclasses.replace(CELL, seed=seed, **fields)) | {"validation": validation, "test": test}


def test_the_choice_is_by_held_out_images_and_the_interval_over_seeds():
    cells = [
        cell(0, 0.7, 0.60, size=3),
        cell(0, 0.6, 0.90, size=5),
        cell(1, 0.1, 0.62, size=3),
        cell(2, 0.1, 0.67, size=3),
        cell(1, 0.9, 0.99, size=5),
    ]
    assert choose(cells, 0)["random", 2]["size"] == 3
    found = document(cells, 0)["ours"]["random"]["2"]
    assert found["accuracy"] == pytest.approx(63)
    spread = math.sqrt(((60 - 63) ** 2 + (62 - 63) ** 2 + (67 - 63) ** 2) / 2)
    assert found["interval"] == pytest.approx(4.303 * spread / math.sqrt(3))
    assert [c["size"] for c in found["searched"]] == [3, 5]
    alone = document(cells[:1], 0)["ours"]["random"]["2"]
    assert (alone["interval"], alone["seeds"]) == (None, 1)


def test_a_stop_loses_nothing(folder, tmp_path, monkeypatch, capsys):
    words = ["--data", str(folder), "--out", str(tmp_path / "t.json"), "--blocks", "1", "--sizes", "3", "5"]
    words += ["--channels", "4", "--seeds", "0", "1", "--epochs", "1", "--filters", "random"]
    calls = []

    def stopping(cell, data):
        calls.append(cell)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(cell, data)

    with monkeypatch.context() as patch:
        patch.setattr(table1, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert [c["size"] for c in json.loads((tmp_path / "t.json").read_text())["cells"]] == [3]
    assert main(words) == 0
    result = json.loads((tmp_path / "t.json").read_text())
    assert [(c["size"], c["seed"]) for c in result["cells"][:2]] == [(3, 0), (5, 0)]
    assert len(result["cells"]) == 3
    assert result["cells"][2]["seed"] == 1
    assert "--data FOLDER" in result["command"]
    assert str(tmp_path) not in result["command"]
    before = (tmp_path / "t.json").read_text()
    assert main(words) == 0
    assert (tmp_path / "t.json").read_text() == before

    for header, rows in table1.tables(table1.shown(result)).values():
        assert all(len(row) == len(header) for row in rows)
    assert result["command"] in table1.shown(result)["notes"][0]
    capsys.readouterr()


def test_data_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(UnconvError, match=r"CIFAR-10 is not there.*<class>"):
        load(tmp_path)
    assert main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
