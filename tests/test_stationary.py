"""The stationary operator against the dense average of J^T J, and the preconditioner against dense algebra."""

import pytest
import torch
import torch.nn.functional as F

from cases import draw
from unconv.stationary import (
    Blocks,
    StationaryConfig,
    StationaryPreconditioner,
    average_normal_operator,
    residual_covariance,
)

SHAPE = (2, 12, 16)


def network(active):
    first = draw(5, 2, 3, 3) / 3

    def features(x):
        h = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), first)
        return F.avg_pool2d(h.relu() if active else h, 2)

    return features


def dense_matrices(kernel_matrix, blocks):
    """The block-circulant average of a dense matrix over cyclic shifts by whole blocks, per frequency."""
    grid, width = blocks.grid, blocks.width
    n = kernel_matrix.shape[0]
    basis = blocks.split(torch.eye(n, dtype=torch.float64).reshape(n, *blocks.image_shape)).flatten(1)
    a = (basis.T @ kernel_matrix @ basis).reshape(width, *grid, width, *grid)
    column = torch.zeros(width, width, *grid, dtype=torch.float64)
    for p in range(grid[0]):
        for q in range(grid[1]):
            column += a[:, :, :, :, p, q].roll((-p, -q), (1, 2)).movedim(-1, 1)
    column /= grid[0] * grid[1]
    return torch.fft.rfftn(column, dim=(-2, -1)).movedim((0, 1), (-2, -1))


@pytest.mark.parametrize("active", [False, True])
def test_the_average_of_a_network_with_circular_padding(active):
    features, blocks = network(active), Blocks(SHAPE, (2, 2))
    x = draw(4, *SHAPE, seed=1)
    config = StationaryConfig(probes=1000, batch_size=100, smoothing=0, taper=0.0)
    found = average_normal_operator(features, x, blocks, config)
    jacobians = [torch.func.jacrev(lambda v: features(v[None])[0])(image).flatten(3).flatten(0, 2) for image in x]
    expected = dense_matrices(torch.stack([j.T @ j for j in jacobians]).mean(0), blocks)
    assert ((found - expected).norm() / expected.norm()).item() < 0.08


def test_smoothing_needs_fewer_probes():
    features, blocks = network(False), Blocks((2, 48, 48), (2, 2))
    x = torch.zeros(1, 2, 48, 48, dtype=torch.float64)
    config = StationaryConfig(probes=400, batch_size=50, smoothing=0, taper=0.0)
    exact = average_normal_operator(features, x, blocks, config)
    errors = []
    for smoothing in (0, 1):
        config = StationaryConfig(probes=8, smoothing=smoothing, taper=0.1)
        found = average_normal_operator(features, x, blocks, config)
        errors.append(((found - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.6 * errors[0]
    assert torch.linalg.eigvalsh(found).min() > -1e-6


def test_the_covariance_of_stationary_residuals():
    blocks = Blocks(SHAPE, (2, 2))
    kernel, noise = (draw(*shape, dtype=torch.float32) for shape in ((2, 2, 3, 3), (400, *SHAPE)))
    residuals = F.conv2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), kernel)
    found = residual_covariance(residuals, blocks, StationaryConfig(smoothing=0, taper=0.0, least_variance=0.0))
    filtered = F.conv2d(F.pad(torch.eye(384).reshape(384, *SHAPE), (1, 1, 1, 1), mode="circular"), kernel).flatten(1)
    expected = dense_matrices((filtered.T @ filtered).double(), blocks)
    assert ((found - expected).norm() / expected.norm()).item() < 0.15
    assert torch.equal(torch.linalg.cholesky_ex(found)[1], torch.zeros(found.shape[:-2], dtype=torch.int32))


def test_the_preconditioner_is_the_posterior_covariance():
    blocks = Blocks(SHAPE, (2, 2))
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    config = StationaryConfig(smoothing=1)
    normal = average_normal_operator(network(False), x, blocks, config)
    covariance = residual_covariance(draw(20, *SHAPE, seed=2), blocks, config)
    preconditioner = StationaryPreconditioner(normal, covariance, blocks)
    nu = torch.tensor([0.3, 20.0])
    v = torch.randn(2, *SHAPE)
    applied = preconditioner.apply(v, nu)
    # (H / nu + C^-1) M v = v, per frequency
    spectrum = torch.fft.rfftn(blocks.split(applied), dim=(-2, -1)).movedim(1, -1)[..., None]
    spectrum, normal, covariance = (t.to(torch.complex128) for t in (spectrum, normal, covariance))
    back = normal @ spectrum / nu.reshape(-1, 1, 1, 1, 1) + torch.linalg.solve(covariance, spectrum)
    again = blocks.join(torch.fft.irfftn(back[..., 0].movedim(-1, 1), s=blocks.grid, dim=(-2, -1)))
    torch.testing.assert_close(again.float(), v, rtol=1e-2, atol=2e-2)
    w = torch.randn(2, *SHAPE)
    left, right = (applied * w).sum((1, 2, 3)), (v * preconditioner.apply(w, nu)).sum((1, 2, 3))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert ((applied * v).sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("shape", [(1, 13), (3, 9, 14), (2, 5, 6, 7)])
def test_blocks_that_do_not_divide_the_image(shape):
    blocks = Blocks.of(shape, (4,) * (len(shape) - 1), 2)
    assert blocks.block == (2,) * (len(shape) - 1)
    x = torch.randn(2, *shape)
    assert torch.equal(blocks.join(blocks.split(x)), x)
    config = StationaryConfig(smoothing=1)
    normal = average_normal_operator(lambda x: 2 * x, x, blocks, config)
    # a multiple of the identity, and less where the grid reaches beyond the image
    assert 0 < normal.diagonal(dim1=-2, dim2=-1).real.mean() < 8
    preconditioner = StationaryPreconditioner(normal, residual_covariance(x, blocks, config), blocks)
    assert preconditioner.apply(x, 1.0).shape == x.shape
