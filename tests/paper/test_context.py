"""The paper's numbering of layers."""

from dataclasses import replace

import pytest

from unconv.errors import UnconvError
from unconv.images import ImageStream, sample_photographs
from unconv.models import load_model
from unconv.paper.context import label, numbering, open_context
from unconv.paper.experiments import EXPERIMENTS


def test_a_pooling_ends_a_block(context):
    assert numbering(context.blocks) == {"0": (1, 1), "2": (1, 2), "5": (2, 1), "7": (2, 2), "10": (3, 1)}


def test_labels_stay_readable_in_deep_blocks():
    assert label((1, 2)) == "c12"
    assert label((1, 12)) != label((11, 2))


def test_imposed_and_own_poolings(context):
    assert context.pooled(context.blocks.get("0")).pooling.kernel == (2, 2)
    assert context.pooled(context.blocks.get("2")).pooling.kernel == (3, 3)


def test_every_experiment_has_its_file_and_tables():
    assert list(EXPERIMENTS) == [
        *("prop1", "fig1", "fig2", "thm31", "thm33", "table1", "table2", "fig3", "table3", "fig4", "table4")
    ]
    for experiment in EXPERIMENTS.values():
        assert callable(experiment.load().run)
        assert callable(experiment.load().tables)


def test_only_what_the_weights_reach_is_measured(tmp_path):
    loaded = load_model("cifar-vgg", size=32)
    images = ImageStream(sample_photographs(), loaded.preprocess)
    context = open_context(loaded, images)
    assert len(context.names) == len(context.blocks) == 6
    assert context.shape == (3, 32, 32)
    assert open_context(loaded, images, blocks=["features.7"]).names == ("features.7",)
    partial = replace(loaded, missing=("features.7.weight",))
    assert open_context(partial, images).names == ("features.0", "features.3")
    with pytest.raises(UnconvError, match=r"gives no features\.7\.weight"):
        open_context(partial, images, blocks=["features.7"])
