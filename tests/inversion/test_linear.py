"""Linear decoders: against scikit-learn, exact where the features hold the image, and never NaN."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from unconv.errors import UnconvError
from unconv.inversion.blocks import as_map, space_to_depth
from unconv.inversion.linear import LinearDecoder, fit_linear_decoders
from unconv.inversion.reference_images import DeadLeavesConfig, dead_leaves
from unconv.inversion.regression import LinearConfig
from unconv.inversion.residuals import ErrorModel, explained_variance
from unconv.inversion.ridge import NormalEquations, RidgeSolver, choose_on_held_out, dual_ridge

QUICK = DeadLeavesConfig(shapes=40)
POINT = LinearConfig(neighbourhoods=((1, 1),))


def pictures(count, shape):
    return dead_leaves(count, shape, config=QUICK) - 0.4


def fit(capture, references, config=None, **options):
    return fit_linear_decoders(lambda x: {"f": capture(x)}, references.split(3), ["f"], config=config, **options)["f"]


def relative_error(estimate, x):
    return ((estimate - x).norm() / x.norm()).item()


def test_the_dual_form_and_its_left_out_predictions_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(12, 40, generator=generator, dtype=torch.float64) + 2
    b = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    found = dual_ridge(a, b, within=(0.1, 0.1), step=2.0)
    centred = a - found.mean
    alpha = 0.1 * (centred @ centred.T).diagonal().mean().item()
    peer = Ridge(alpha=alpha).fit(a.numpy(), b.numpy())
    torch.testing.assert_close(found.coefficients.T @ centred, torch.from_numpy(peer.coef_))
    for i in range(12):
        others = [j for j in range(12) if j != i]
        alone = Ridge(alpha=alpha).fit(a[others].numpy(), b[others].numpy()).predict(a[i : i + 1].numpy())
        torch.testing.assert_close(found.left_out[i], torch.from_numpy(alone)[0])


@pytest.mark.parametrize("targets", [1, 60])
def test_the_regularisation_is_the_best_on_held_out_samples(targets):
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(30, targets, generator=generator, dtype=torch.float64)
    parts, samples = [], []
    for n in (40, 200):
        a = torch.randn(n, 30, generator=generator, dtype=torch.float64)
        samples.append((a, a @ truth + 10 * torch.randn(n, targets, generator=generator, dtype=torch.float64)))
        parts.append(NormalEquations(30, targets))
        parts[-1].add(*samples[-1])
    ridge, weight = choose_on_held_out(*parts, start=1e-4, step=2.0, within=(1e-7, 1e3))
    solver, (a, b) = RidgeSolver(parts[0]), samples[1]

    def error(weight):
        return (a @ weight[:-1] + weight[-1] - b).square().sum().item()

    best = min(error(solver.weight(1e-4 * 2.0**k)) for k in range(-5, 22))
    assert error(weight) == pytest.approx(best, rel=1e-9 if targets == 1 else 0.01)
    assert ridge > 0.1


def test_a_map_with_one_position_is_a_ridge_regression_of_scikit_learn():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def capture(x):
        return F.conv2d(x, weight, stride=2).relu()

    x = pictures(4, (3, 16, 16))
    decoder = fit(capture, x, POINT)
    a = capture(x).movedim(1, -1).flatten(0, 2).double()
    b = space_to_depth(x, (2, 2)).movedim(1, -1).flatten(0, 2).double()
    # one unknown more, for the outside of the map, which is never read here
    alpha = decoder.weights.ridge * ((a - a.mean(0)).square().sum() / 6).item()
    peer = Ridge(alpha=alpha).fit(a.numpy(), b.numpy())
    torch.testing.assert_close(
        decoder.weights.near[:, :5, 0, 0], torch.from_numpy(peer.coef_).float(), rtol=1e-3, atol=1e-4
    )
    predicted = torch.from_numpy(peer.predict(a.numpy())).float().reshape(4, 8, 8, 12).movedim(-1, 1)
    torch.testing.assert_close(space_to_depth(decoder(capture(x), (3, 16, 16)), (2, 2)), predicted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((3, 16, 16), 2), ((1, 20, 12), 4), ((2, 30), 3), ((4, 9, 12, 6), 3), ((13, 12, 12), 2), ((3, 12, 15), 1)],
)
def test_features_that_hold_the_image_give_it_back(shape, stride):
    block = (stride,) * (len(shape) - 1)
    x = pictures(8, shape)
    decoder = fit(lambda x: space_to_depth(x, block), x)
    test = dead_leaves(2, shape, config=QUICK, seed=9) - 0.4
    assert decoder.weights.status == "fitted"
    assert relative_error(decoder(space_to_depth(test, block), shape), test) < 0.1


@pytest.mark.parametrize(
    ("size", "stride"), [((17, 17), 2), ((23, 26), 4), ((20, 19), 3), ((40,), 3), ((11, 10, 11), 2)]
)
@pytest.mark.parametrize("padding", [0, 1])
def test_strides_that_do_not_divide_the_image(size, stride, padding):
    dims = len(size)
    channels = 2
    weight = torch.randn(2 * channels * stride**dims, channels, *(stride,) * dims)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]

    def capture(x):
        return convolve(x, weight, stride=stride, padding=padding)

    x = pictures(24, (channels, *size))
    decoder = fit(capture, x, LinearConfig(neighbourhoods=((3, 3),), fewest_samples=1.0))
    estimate = decoder(capture(x), (channels, *size))
    assert estimate.shape == x.shape
    assert decoder.residuals is not None
    # away from the border the features hold all; there are few samples
    inner = (slice(None), slice(None), *[slice(stride + 1, n - 2 * stride - 1) for n in size])
    assert relative_error(estimate[inner], x[inner]) < 0.4
    assert relative_error(estimate, x) < 0.6


def test_a_far_neighbourhood_says_more_than_a_near_one():
    weight = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    def capture(x):
        return F.conv2d(x, weight, stride=2, padding=2).relu()

    x, test = pictures(12, (3, 32, 32)), dead_leaves(4, (3, 32, 32), config=QUICK, seed=9) - 0.4
    errors = []
    for pair in ((1, 1), (1, 5)):
        decoder = fit(capture, x, LinearConfig(neighbourhoods=(pair,), far_components=4))
        errors.append(relative_error(decoder(capture(test), (3, 32, 32)), test))
    assert errors[1] < 0.95 * errors[0]


def test_vectors_and_small_maps_give_a_coarse_image():
    x = pictures(20, (3, 32, 32))
    weight = torch.randn(100, 3 * 16, generator=torch.Generator().manual_seed(0))
    test = dead_leaves(6, (3, 32, 32), config=QUICK, seed=9) - 0.4
    for capture in (
        lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1) @ weight.T,  # dual
        lambda x: F.adaptive_avg_pool2d(x, 2),  # fewer unknowns than images
    ):
        decoder = fit(capture, x)
        assert decoder.weights.kind == "vector"
        estimate = decoder(capture(test), (3, 32, 32))
        assert relative_error(estimate, test) < 0.9 * relative_error(x.mean(0, keepdim=True), test)


def test_tokens_and_channels_last_are_maps():
    x = torch.randn(2, 3, 12, 8)
    blocks = space_to_depth(x, (2, 2))
    tokens = torch.cat([torch.ones(2, 1, 12), blocks.flatten(2).mT], 1)
    assert torch.equal(as_map(tokens, (12, 8)), blocks)
    assert torch.equal(as_map(blocks.movedim(1, -1), (12, 8)), blocks)
    assert torch.equal(as_map(blocks, (12, 8)), blocks)
    assert as_map(torch.ones(2, 9), (12, 8)) is None
    assert as_map(torch.ones(2, 20, 5), (12, 8)) is None
    assert as_map(torch.ones(2, 9, 2, 1), (12, 8)) is None
    references = pictures(8, (3, 12, 8))
    decoder = fit(lambda x: space_to_depth(x, (2, 2)).flatten(2).mT, references)
    assert relative_error(decoder(space_to_depth(references, (2, 2)).flatten(2).mT, (3, 12, 8)), references) < 0.1


@pytest.mark.parametrize("value", [0.0, 3.0, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(4, 8, 8), (4,)])
def test_features_that_say_nothing_are_a_status(value, shape):
    x = pictures(6, (3, 16, 16))
    decoder = fit(lambda x: torch.full((len(x), *shape), value), x)
    assert decoder.weights.status == ("features are constant" if math.isfinite(value) else "features are not finite")
    estimate = decoder(torch.full((2, *shape), value), (3, 16, 16))
    assert estimate.isfinite().all()
    assert relative_error(estimate, x[:2]) < 1.5
    assert decoder.residuals.isfinite().all()


def test_too_few_positions_shrink_the_neighbourhood_and_say_so():
    x = pictures(3, (3, 16, 16))

    def capture(x):
        return space_to_depth(x, (4, 4))

    decoder = fit(capture, x)
    assert "only 48 positions" in decoder.weights.note
    assert decoder(capture(x), (3, 16, 16)).isfinite().all()


def test_wide_layers_are_read_through_components():
    x = pictures(8, (3, 16, 16))
    wide = torch.randn(90, 12, 1, 1, generator=torch.Generator().manual_seed(0))

    def capture(x):
        return F.conv2d(space_to_depth(x, (2, 2)), wide)

    decoder = fit(capture, x, LinearConfig(max_unknowns=60, neighbourhoods=((1, 1),)))
    assert decoder.weights.projection.shape == (59, 90)
    assert relative_error(decoder(capture(x), (3, 16, 16)), x) < 0.05


def test_few_reference_images():
    x = pictures(1, (3, 16, 16))
    decoder = fit(lambda x: space_to_depth(x, (2, 2)), x)
    assert decoder.residuals is None
    with pytest.raises(UnconvError, match="no reference image was held out"):
        decoder.expected_squared_error(x)
    assert fit(lambda x: x.mean((2, 3)), x).weights.status == "fewer than three reference images"


def test_wrong_inputs_are_refused():
    x = pictures(4, (3, 16, 16))
    decoder = fit(lambda x: space_to_depth(x, (2, 2)), x)
    with pytest.raises(UnconvError, match="12 channels"):
        decoder(torch.ones(1, 5, 8, 8), (3, 16, 16))
    with pytest.raises(UnconvError, match="3 channels"):
        decoder(torch.ones(1, 12, 8, 8), (1, 16, 16))
    with pytest.raises(UnconvError, match="at least one"):
        fit_linear_decoders(lambda x: {}, [], ["f"])
    with pytest.raises(UnconvError, match="no features of f"):
        fit_linear_decoders(lambda x: {}, [x], ["f"])
    with pytest.raises(UnconvError, match="different shapes"):
        fit_linear_decoders(lambda x: {"f": x}, [x, x[..., :9]], ["f"])


@pytest.mark.parametrize("vector", [False, True])
def test_saved_and_loaded(tmp_path, vector):
    def capture(x):
        return x.flatten(1) if vector else F.avg_pool2d(x, 2)

    x = pictures(8, (3, 16, 16))
    decoder = fit(capture, x)
    decoder.save(tmp_path / "decoder.safetensors")
    again = LinearDecoder.load(tmp_path / "decoder.safetensors")
    assert torch.equal(again(capture(x), (3, 16, 16)), decoder(capture(x), (3, 16, 16)))
    assert torch.equal(again.expected_squared_error(x), decoder.expected_squared_error(x))
    assert again.weights.ridge == decoder.weights.ridge
    torch.testing.assert_close(again.residuals, decoder.residuals, atol=1e-3, rtol=1e-3)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnconvError, match="holds no linear decoder"):
        LinearDecoder.load(tmp_path / "broken.safetensors")


def test_explained_variance_by_frequency_and_colour():
    x = pictures(4, (3, 64, 64))
    grey = x.mean(1, keepdim=True).expand_as(x)
    found = explained_variance(x, grey)
    torch.testing.assert_close(found.luminance, torch.ones(6, dtype=torch.float64))
    assert found.colour[-1] < 0.01
    smooth = F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)
    found = explained_variance(x, smooth)
    assert found.luminance[0] > 0.95
    assert found.luminance[-1] < 0.5
    assert explained_variance(x[:, :1], smooth[:, :1]).colour.isnan().all()


def test_expected_errors_are_those_of_other_images():
    generator = torch.Generator().manual_seed(0)
    x = pictures(8, (3, 48, 48))
    contrast = (x - F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)).square()
    noise = F.avg_pool2d(contrast, 5, 1, 2).sqrt() * torch.randn(x.shape, generator=generator)
    estimate = x + noise
    model = ErrorModel.of(estimate[:5], -noise[:5], reach=2)
    expected, true = model.calibration(x[5:], estimate[5:])
    assert true[-1] > 10 * true[0].clamp_min(1e-6)
    ratio = expected.sum() / true.sum()
    assert 0.7 < ratio < 1.4
