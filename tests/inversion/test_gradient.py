import pytest
import torch

from unconv.errors import UsageError
from unconv.inversion.gradient import GradientConfig, Regulariser, gradient_descent
from unconv.linalg import relative_norm


def test_finds_an_image_within_its_passes(make):
    function, x = make()
    known = function.record(x, "switches")
    config = GradientConfig(max_steps=60)
    solution = gradient_descent(function, function(x), known, config=config)
    assert solution.residual.max() < 0.2 * solution.history[0].min()
    assert relative_norm(solution.value - x, x).max() < 0.6
    made = []
    function.model[0].register_forward_hook(lambda *_: made.append(1))
    short = gradient_descent(function, function(x[:1]), known.select(torch.tensor([0])), passes=11, config=config)
    assert 9 <= short.passes[0] <= 11
    assert len(made) <= 2 * 11 + 1
    alone = gradient_descent(function, function(x[1:]), known.select(torch.tensor([1])), config=config)
    torch.testing.assert_close(alone.value, solution.value[1:], rtol=1e-4, atol=1e-6)


def test_priors_and_jitter(make):
    function, x = make()
    features = function(x)

    def run(**options):
        return gradient_descent(function, features, config=GradientConfig(max_steps=30, **options))

    plain = run()
    flat = run(regulariser=Regulariser(total_variation=1.0))
    assert flat.value.diff(dim=3).square().sum() < 0.5 * plain.value.diff(dim=3).square().sum()
    assert run(regulariser=Regulariser(alpha_norm=1e3)).value.abs().max() < plain.value.abs().max()
    assert not torch.equal(run(jitter=2).history[1], plain.history[1])


def test_bad_configs_are_refused():
    with pytest.raises(UsageError, match="jitter is -1"):
        GradientConfig(jitter=-1)
