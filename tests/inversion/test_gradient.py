import torch

from unconv.inversion.gradient import GradientConfig, gradient_descent
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
