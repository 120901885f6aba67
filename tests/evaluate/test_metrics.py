"""Whether a reconstruction keeps the class, by a network that may not be a classifier, or not at this size."""

import pytest
import torch
from torch import nn

from unconv.errors import UsageError
from unconv.evaluate.metrics import choose_judge
from unconv.models import adopt_model, load_model

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5)).eval()


def judged(module, x):
    return choose_judge(adopt_model(module), module, x, None)


def test_a_classifier_judges_itself():
    model = classifier()
    judge, notes = judged(model, X)
    assert notes == []
    same = judge.same_class(torch.cat([X, X]), torch.cat([X, -5 * X]), X, X)
    assert same == [1.0, float(model(X).argmax() == model(-5 * X).argmax())]


@pytest.mark.parametrize(
    ("model", "says"), [(classifier()[:2], "gives no class scores"), (classifier(), "takes no input of shape")]
)
def test_no_classes_are_said_and_do_not_stop_a_report(model, says):
    x = X[..., :12, :12]  # a head for images of another size
    judge, notes = judged(model, x)
    assert judge is None
    assert says in notes[0]


def test_a_network_with_random_weights_judges_nothing(tmp_path):
    untrained = load_model("squeezenet1_1", size=32)
    judge, notes = choose_judge(untrained, untrained.module, untrained.example(), None)
    assert judge is None
    assert "weights of squeezenet1_1 are random; name a judge" in notes[0]
    trunk = {k: v for k, v in untrained.module.state_dict().items() if k.startswith("features.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    partial = load_model("squeezenet1_1", weights=str(tmp_path / "trunk.pth"), size=32)
    assert "gives no classifier.1.weight and 1 more" in partial.notes[-1]
    for other, why in ((untrained, "are random"), (partial, "end before its classifier")):
        with pytest.raises(UsageError, match=why):
            choose_judge(adopt_model(classifier()), classifier(), X, other)
