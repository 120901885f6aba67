"""The paper's numbering of layers."""

from unconv.paper.experiment_context import blocks, label


def test_a_pooling_ends_a_block(subject):
    assert blocks(subject.stages) == {"0": (1, 1), "2": (1, 2), "5": (2, 1), "7": (2, 2), "10": (3, 1)}


def test_labels_stay_readable_in_deep_blocks():
    assert label((1, 2)) == "c12"
    assert label((1, 12)) != label((11, 2))


def test_imposed_and_own_poolings(subject):
    assert subject.pooled(subject.stages.get("0")).pooling.kernel == (2, 2)
    assert subject.pooled(subject.stages.get("2")).pooling.kernel == (3, 3)
