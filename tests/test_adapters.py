"""Others' solvers and adjoint tests on our operators."""

import sys

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds

from cases import draw
from unconv.adapters import to_deepinv, to_pylops, to_scipy
from unconv.errors import UnconvError
from unconv.operators import ConvOperator
from unconv.testing import MatrixOperator, dense_matrix


@pytest.fixture
def operator():
    return ConvOperator(draw(6, 2, 3, 3), (2, 7, 6), stride=(2, 1), padding=1)


def test_scipy_is_the_same_matrix(operator):
    dense = dense_matrix(operator).numpy()
    adapted = to_scipy(operator)
    assert adapted.dtype == np.float64
    assert np.allclose(adapted @ np.eye(dense.shape[1]), dense)
    assert np.allclose(adapted.H @ np.eye(dense.shape[0]), dense.T)
    assert svds(adapted, k=1, return_singular_vectors=False)[0] == pytest.approx(operator.norm(), rel=1e-4)


def test_single_precision_stays_single(operator):
    adapted = to_scipy(operator.to(torch.float32))
    assert adapted.dtype == np.float32
    assert (adapted @ np.ones(adapted.shape[1])).dtype == np.float32


def test_any_operator_of_the_protocol(operator):
    matrix = draw(4, 3)
    assert np.allclose(to_scipy(MatrixOperator(matrix)) @ np.eye(3), matrix.numpy())


def test_pylops_finds_the_adjoint_adjoint(operator):
    pylops = pytest.importorskip("pylops")
    adapted = to_pylops(operator)
    assert pylops.utils.dottest(adapted, *adapted.shape, rtol=1e-10)
    x = np.random.default_rng(0).standard_normal(operator.input_shape)
    assert np.allclose(adapted @ x, operator.forward(torch.from_numpy(x)[None])[0].numpy())


def test_deepinv_finds_the_adjoint_adjoint(operator):
    pytest.importorskip("deepinv")
    physics = to_deepinv(operator)
    u = draw(2, 2, 7, 6)
    assert physics.adjointness_test(u) < 1e-12
    assert torch.equal(physics.A(u), operator.forward(u))


@pytest.mark.parametrize(("adapt", "package"), [(to_pylops, "pylops"), (to_deepinv, "deepinv")])
def test_an_absent_package_is_one_line(operator, monkeypatch, adapt, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [])  # nothing more is found
    with pytest.raises(UnconvError, match=rf"^{package} is not installed; get it with: pip install 'unconv\["):
        adapt(operator)
