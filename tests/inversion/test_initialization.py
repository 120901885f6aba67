import torch

from unconv.inversion.frozen_network import NO_SIDE_INFORMATION, LayerFunction
from unconv.inversion.initialization import initial_image
from unconv.linalg import relative_norm


def test_comes_near_and_each_image_is_alone(smooth_images):
    function, x, box = smooth_images
    features = function(x)
    estimate = initial_image(function, features, NO_SIDE_INFORMATION, box=box, passes=60)
    begun = relative_norm(function(torch.zeros_like(x)) - features, features)
    assert (relative_norm(function(estimate) - features, features) < 0.3 * begun).all()
    alone = initial_image(function, features[1:], NO_SIDE_INFORMATION, box=box, passes=60)
    torch.testing.assert_close(alone, estimate[1:], rtol=1e-6, atol=1e-9)
    assert not initial_image(function, features, NO_SIDE_INFORMATION, box=box, passes=0).any()


def test_leaves_zero_where_no_unit_is_on(smooth_images):
    function, x, box = smooth_images
    for name, parameter in function.model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    function = LayerFunction(function.model, function.layer, function.input_shape)
    features = function(x)
    estimate = initial_image(function, features, NO_SIDE_INFORMATION, box=box, passes=100)
    assert relative_norm(function(estimate) - features, features).max() < 0.3
