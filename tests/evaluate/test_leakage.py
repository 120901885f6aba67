"""The bracket of a run, on a Gaussian network with Gaussian images, where the assumptions of its bound hold."""

import math

import pytest
import torch
from torch import nn

import cases
from unconv.errors import UnconvError
from unconv.evaluate.leakage import ASSUMPTION, leakage_documents, leakage_table, sentences
from unconv.evaluate.network import Network
from unconv.evaluate.reconstruction import solver_config
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.invert import invert_features
from unconv.inversion.linear import fit_linear_decoders
from unconv.preprocessing import UserPreprocess
from unconv.stationary import StationaryPreconditioner
from unconv.unseen.image_prior import ImagePrior

SHAPE = (2, 16, 16)


@torch.no_grad()
def sent(function, images, noise, generator):
    """Features with noise, relative to the root mean square of each image's own."""
    y = function(images)
    size = y.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
    return y + noise * size * torch.randn(y.shape, generator=generator)


def gaussian_network(noise, seed=0):
    """A linear network of Gaussian filters, images drawn from a Gaussian prior, and a linear decoder for that noise."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 3, stride=2, padding=1)).eval()
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    channels = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    power = (0.5 / (1 + row**2 + column**2)).double()[..., None, None] * channels
    prior = ImagePrior(torch.full((2, 1, 1), 0.5, dtype=torch.float64), power)
    generator = torch.Generator().manual_seed(seed)
    network = Network(module, UserPreprocess(lambda image: torch.zeros(SHAPE)))
    network.references = prior.sample(200, generator).float()

    def capture(batch):
        return {"1": sent(module, batch, noise, generator)}

    network.linear = fit_linear_decoders(capture, network.references.split(50), ["1"])
    return network, prior.sample(8, generator).float(), generator


@pytest.mark.parametrize("noise", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_no_method_of_ours_is_below_the_bound_where_its_assumptions_hold(noise, seed):
    network, images, generator = gaussian_network(noise, seed)
    (found,) = leakage_documents(network, "1", [noise], images, seed)
    assert 0 < found["bound"] < found["attained"]["mean image"]
    assert found["bound"] <= found["attained"]["linear decoder"]
    function = network.function("1", SHAPE)
    noisy = sent(function, images, noise, generator)
    decoder = network.linear["1"]
    unseen = decoder.unseen()
    assert unseen is not None
    preconditioner = StationaryPreconditioner.of(function, network.references, unseen[2], decoder.weights.stride)
    for config in (solver_config(noise), GaussNewtonConfig()):
        refined = invert_features(
            function, noisy, passes=30, decoder=decoder, preconditioner=preconditioner, config=config
        )
        error = (refined.value - images).square().mean().item()
        assert error >= found["bound"]


def test_the_table_has_the_best_attacker_of_the_run():
    document = {"layer": "a", "noise": 0.1, "bound": 1e-4, "in_pixels": True, "bits_per_pixel": 2.0, "images": 2}
    document |= {"attained": {"mean image": 0.05, "linear decoder": 0.01}}
    row = {"layer": "a", "noise": 0.1, "method": "gauss-newton", "side_info": "none", "psnr": 30.0}
    switches = row | {"side_info": "switches", "psnr": 60.0}
    (entry,) = leakage_table([document], [row, row | {"psnr": 27.0}, switches, row | {"noise": 0.0, "psnr": 70.0}])
    assert entry["best"] == "refined"
    assert entry["attained"]["refined"] == pytest.approx((1e-3 + 10**-2.7) / 2)
    assert entry["psnr"]["bound"] == pytest.approx(40.0)
    assert entry["gap_db"] == pytest.approx(10 * math.log10(entry["attained"]["refined"] / 1e-4))
    (sentence,) = sentences([entry])
    assert (
        "With noise of 0.1 of the features' size no attacker gets more than 40.0 dB at a (refined: 28.2 dB)" in sentence
    )
    assert ASSUMPTION in sentence
    (easier,) = leakage_table([document], [row | {"psnr": 41.0}])
    assert easier["gap_db"] < 0
    assert sentences([easier]) == []
    (alone,) = leakage_table([document | {"in_pixels": False}], [row])
    assert alone["best"] == "linear decoder"
    assert sentences([alone]) == []


def test_layers_without_gradient_and_networks_without_references_are_refused():
    network = Network(cases.without_gradient("detach"), UserPreprocess(lambda image: torch.zeros(3, 16, 16)))
    with pytest.raises(UnconvError, match="no reference images"):
        leakage_documents(network, "b", [0.1], torch.rand(2, 3, 16, 16), 0)
    network.references = torch.rand(20, 3, 16, 16)
    with pytest.raises(UnconvError, match="no gradient"):
        leakage_documents(network, "b", [0.1], torch.rand(2, 3, 16, 16), 0)
