"""Bounds of leakage against linear networks and Gaussian images, whose best possible error is known in closed form."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
import unconv
from unconv.errors import UnconvError, UsageError
from unconv.inversion.frozen_network import LayerFunction
from unconv.stationary import Blocks
from unconv.unseen.attack import most_likely
from unconv.unseen.image_prior import ImagePrior
from unconv.unseen.leakage import LinearModel, quantisation_noise
from unconv.unseen.pixels import PixelFunction, mean_interval

SHAPE = (2, 16, 16)


@pytest.fixture(scope="module")
def prior():
    """Colours that are correlated, and a spectrum that falls like that of photographs."""
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    power = 0.5 / (1 + row**2 + column**2).double()
    channels = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    return ImagePrior(torch.full((2, 1, 1), 0.5, dtype=torch.float64), power[..., None, None] * channels)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1)).eval()


def dense(function, prior):
    """The Jacobian of a linear layer and the covariance of the prior as matrices."""
    zero = torch.zeros(1, *SHAPE)
    jacobian = torch.autograd.functional.jacobian(lambda v: function(v).flatten(), zero).flatten(1).double()
    basis = torch.eye(512, dtype=torch.float64).reshape(512, *SHAPE)
    precision = prior.precision(basis).flatten(1)
    return jacobian, precision


def test_the_prior_is_found_again_in_its_samples(prior):
    samples = prior.sample(3000, torch.Generator().manual_seed(0))
    found = ImagePrior.of(samples)
    assert abs(found.variance / prior.variance - 1) < 0.05
    assert ((found.covariance - prior.covariance).norm() / prior.covariance.norm()).item() < 0.1
    with pytest.raises(UnconvError, match="too few"):
        ImagePrior.of(samples[:2])


def test_covariance_in_blocks_is_circulant_with_the_spectrum_of_the_prior(prior):
    blocks = Blocks(SHAPE, (2, 2))
    matrices = prior.in_blocks(blocks)
    assert torch.linalg.eigvalsh(matrices).min() > 0
    single = prior.in_blocks(Blocks(SHAPE, (1, 1)))
    torch.testing.assert_close(single[3, 5].real, prior.covariance[6, 10])
    # the same operator whatever the blocks: all eigenvalues, with the conjugate half of the frequencies
    whole = [torch.cat([m, m[:, 1:-1]], 1) for m in (matrices, single)]
    ours, theirs = (torch.linalg.eigvalsh(m).flatten().sort().values for m in whole)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.02, 0.05), (0.3, 0.25)])
def test_the_bound_is_the_best_possible_error_of_a_linear_network(network, prior, sigma, tolerance):
    function = PixelFunction(LayerFunction(network, "1", SHAPE))
    generator = torch.Generator().manual_seed(3)
    images = prior.sample(10, generator).float()
    model = LinearModel.of(function, images, prior, probes=400, batch_size=100)
    bound = model.bound(sigma, probes=400, batch_size=100)
    jacobian, precision = dense(function, prior)
    posterior = torch.linalg.inv(jacobian.T @ jacobian / sigma**2 + precision)
    best = posterior.trace().item() / 512
    assert bound.bayes <= best
    assert bound.bayes > 0.8 * best
    assert abs(bound.trace.value / jacobian.square().sum().item() - 1) < 0.02
    assert abs(bound.dfil / (jacobian.square().sum().item() / (512 * sigma**2)) - 1) < 0.02
    nats = torch.logdet(torch.eye(512) + torch.linalg.solve(precision, jacobian.T @ jacobian) / sigma**2).item() / 2
    assert abs(bound.bits_per_pixel / (nats / math.log(2) / 256) - 1) < tolerance
    # no attack is below it, and ours, which is the posterior mean, attains it
    with torch.no_grad():
        noisy = function(images) + sigma * torch.randn(10, *function.function.shape, generator=generator)
    start = prior.mean.float().expand(10, *SHAPE)
    errors = (most_likely(model, noisy, start, sigma, passes=20) - images).square().flatten(1).mean(1)
    margin = 2 * errors.std().item() / 10**0.5
    assert errors.mean().item() + margin > bound.bayes
    assert errors.mean().item() < best + margin
    exact = (posterior @ jacobian.T / sigma**2) @ (noisy - function(start)).double().flatten(1).T
    torch.testing.assert_close(
        most_likely(model, noisy[:1], start[:1], sigma, passes=50)[0].flatten().double(),
        exact[:, 0] + 0.5, rtol=0.05, atol=0.05 * best**0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "steps",
    [lambda x: torch.sign(x - 0.5), lambda x: torch.round(8 * x), lambda x: F.hardtanh(1e6 * (x - 0.5))],
    ids=["sign", "round", "steep"],
)
def test_features_that_change_where_no_jacobian_says_so_are_refused(prior, steps):
    # the sign of a Gaussian pixel says what it is up to 1 - 2 / pi of its variance, and J is 0 at every image
    network = cases.Net(lambda m, x: m.act(steps(x)), act=nn.Identity()).eval()
    images = prior.sample(8, torch.Generator().manual_seed(0)).float()
    with pytest.raises(UnconvError, match="change more between images than their Jacobian accounts for"):
        LinearModel.of(PixelFunction(LayerFunction(network, "act", SHAPE)), images, prior)


def test_no_bound_is_above_the_error_of_the_mean_image():
    # nearly flat images, whose variance is that of two numbers
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    power = torch.where(row + column == 0, 50.0, 1e-3).double()
    flat = ImagePrior(torch.zeros(2, 1, 1).double(), power[..., None, None] * torch.eye(2).double())
    network = nn.Sequential(nn.Conv2d(2, 4, 3)).eval()
    images = flat.sample(1, torch.Generator().manual_seed(0)).float()
    model = LinearModel.of(PixelFunction(LayerFunction(network, "0", SHAPE)), images, flat)
    bounds = [model.bound(1e6, probes=2, seed=seed) for seed in range(30)]
    assert max(max(b.bayes, b.bayes_estimate) for b in bounds) <= flat.variance


@pytest.mark.parametrize("scale", [1e-20, 1e-25])
def test_features_whose_squares_leave_float32(prior, scale):
    network = cases.Net(lambda m, x: m.act(scale * m.conv(x)), conv=nn.Conv2d(2, 4, 3), act=nn.Identity()).eval()
    images = prior.sample(1, torch.Generator().manual_seed(0)).float()
    model = LinearModel.of(PixelFunction(LayerFunction(network, "act", SHAPE)), images, prior)
    with pytest.raises(UnconvError, match="float32 cannot square") if scale < 1e-22 else nullcontext():
        bound = model.bound(scale)
        assert 0 < bound.trace.value < 1e3 * scale**2 * 512
        assert 0 < bound.bayes < prior.variance


@pytest.fixture(scope="module")
def references(tmp_path_factory, smooth_pictures):
    folder = tmp_path_factory.mktemp("references")
    smooth_pictures(folder, 12, (40, 40))
    return folder


def test_what_is_said_of_the_bundled_network(references, tmp_path, smooth_pictures):
    smooth_pictures(tmp_path, 2, (33, 33))
    options = {"size": 32, "passes": 6, "probes": 8, "reference_images": references, "bits": 5}
    found = unconv.leakage("cifar-vgg", "features.0", tmp_path, **options)
    assert 0 < found.bound.bayes < found.best[1] < found.bound.prior_variance
    document = found.document()
    assert document["psnr"]["bayesian_bound"] > document["psnr"]["most likely"] > document["psnr"]["prior"]
    assert document["bits_per_pixel_estimate"] > 0.3
    assert any("quantisation" in line for line in document["assumptions"])
    assert repr(found).startswith("Leakage(features.0, sigma")


def test_without_noise_the_bound_is_empty_and_said_so(references):
    options = {"size": 16, "limit": 1, "probes": 4, "reference_images": references}
    found = unconv.leakage("cifar-vgg", "features.0", sigma=0, **options)
    assert found.bound.bayes == 0
    assert found.bound.bits_per_pixel is None
    assert found.gap_db is None
    assert any("empty" in note for note in found.notes)
    assert found.document()["dfil"] is None


def test_quantisation_is_noise_of_a_twelfth_of_the_squared_step():
    features = torch.rand(20000) * 3
    sigma, quantised = quantisation_noise(features, 4)
    assert len(quantised.unique()) == 16
    assert abs((quantised - features).std().item() / sigma - 1) < 0.02
    with pytest.raises(UsageError, match="bits is 0"):
        quantisation_noise(features, 0)


def test_intervals_cover_the_choice_of_images_where_there_are_some():
    samples = torch.tensor([1.0, 1.2, 5.0, 5.2, 3.0, 3.2, 4.0, 4.2])
    few = mean_interval(samples[:4], torch.tensor([0, 0, 1, 1]))
    many = mean_interval(samples, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert few.value == pytest.approx(3.1)
    assert many.low < many.value - 2 < many.value + 2 < many.high
    assert mean_interval(samples[:1], torch.tensor([0])).high == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the noise is missing or given twice"),
        ({"sigma": 1.0, "bits": 8}, "missing or given twice"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"sigma": 1.0, "probes": 0}, "probes is 0"),
        ({"sigma": 1.0, "depth": 3}, "no argument 'depth'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        unconv.leakage("cifar-vgg", "features.0", size=32, limit=1, **arguments)


def test_layers_without_gradient_are_refused():
    with pytest.raises(UnconvError, match="no gradient passes from layer 'b'"):
        unconv.leakage(cases.without_gradient("no_grad"), "b", size=16, sigma=1.0)
