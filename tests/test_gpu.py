"""What a GPU computes equals what the CPU computes: ``make gpu-tests``."""

import pytest
import torch

from unconv.block_extraction import find_conv_blocks
from unconv.conv_block import SIDE_INFO
from unconv.decode.convex import convex
from unconv.evaluate.network import open_device
from unconv.inversion.frozen_network import LayerFunction
from unconv.inversion.gauss_newton import GaussNewtonConfig, gauss_newton
from unconv.measure.rip import sample_ratios
from unconv.models import load_model
from unconv.operators import ConvOperator, adjoint_gap
from unconv.recover import htp, iht
from unconv.sparsity import Pooled
from unconv.tracing import capture_inputs as capture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(scope="module")
def device():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield open_device("cuda")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def layer():
    """The bundled network's first pooled stage, and its input."""
    loaded = load_model("cifar-vgg", size=32)
    x = loaded.example()
    stage = find_conv_blocks(loaded.module, x).get("features.3")
    return loaded.module, stage, capture(loaded.module, ["features.3"], x)["features.3"], x


def test_no_tensor_float_32(device):
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("dims", "stride", "padding"), [(1, 2, 0), (2, 1, 1), (2, 2, 1), (3, 1, 1)])
def test_the_transposed_convolution_is_the_adjoint(device, dims, stride, padding):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, *[3] * dims, generator=generator)
    operator = ConvOperator(weight, (3, *[10] * dims), stride=stride, padding=padding)
    x = torch.randn(2, *operator.input_shape, generator=generator)
    z = torch.randn(2, *operator.output_shape, generator=generator)
    there = operator.to(device)
    assert adjoint_gap(there, x.to(device), z.to(device)) < 1e-6
    torch.testing.assert_close(there.forward(x.to(device)).cpu(), operator.forward(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.adjoint(z.to(device)).cpu(), operator.adjoint(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", [iht, htp])
def test_recovery_is_the_same(device, layer, solver):
    _, stage, inner, _ = layer
    operator, model = stage.operator.normalised(), Pooled(2, k=500)
    here = solver(operator, inner, model)
    there = solver(operator.to(device), inner.to(device), model)
    torch.testing.assert_close(there.residual.cpu(), here.residual, rtol=1e-3, atol=1e-5)


def test_the_convex_decoder_is_as_near(device, layer):
    module, stage, inner, x = layer
    here = convex(stage, stage.encode(inner), max_steps=40)
    moved = find_conv_blocks(module.to(device), x.to(device)).get(stage.name)
    there = convex(moved, moved.encode(inner.to(device)), max_steps=40)
    module.cpu()
    size = inner.norm()
    assert (there.value.cpu() - here.value).norm() < 0.02 * size
    assert there.residual.item() < 1.1 * here.residual.item() + 1e-4


@pytest.mark.parametrize("side_info", SIDE_INFO)
def test_gauss_newton_is_as_near(device, layer, side_info):
    module, stage, _, x = layer
    config = GaussNewtonConfig(passes=40)
    errors = []
    for where in ("cpu", device):
        image = x.to(where)
        moved = find_conv_blocks(module.to(where), image).get(stage.name)
        features = LayerFunction(module, moved.output or moved.name, x.shape[1:])
        known = features.record(image, side_info)
        found = gauss_newton(features, features(image, known), known, config=config)
        errors.append(((found.value - image).norm() / image.norm()).item())
    module.cpu()
    assert errors[1] == pytest.approx(errors[0], rel=0.1, abs=1e-3)


@pytest.mark.parametrize("method", ["dense", "gram"])
def test_sampled_ratios_are_the_same(device, method):
    weight = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0)) / 6
    operator = ConvOperator(weight, (4, 12, 12))
    here = sample_ratios(operator, Pooled(2), 20, 50, method=method)
    there = sample_ratios(operator.to(device), Pooled(2), 20, 50, method=method)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)
