"""Others' solvers and adjoint tests on our operators."""

import sys

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import lsqr, svds

from unconv.adapters import to_deepinv, to_pylops, to_scipy
from unconv.errors import UnconvError
from unconv.operators import ConvOperator
from unconv.solvers.cgls import cgls
from unconv.testing import MatrixOperator, dense_matrix


@pytest.fixture
def operator():
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ConvOperator(weight, (2, 7, 6), stride=(2, 1), padding=1)


def test_scipy_is_the_same_matrix(operator):
    dense = dense_matrix(operator).numpy()
    adapted = to_scipy(operator)
    assert adapted.dtype == np.float64
    assert np.allclose(adapted @ np.eye(dense.shape[1]), dense)
    assert np.allclose(adapted.H @ np.eye(dense.shape[0]), dense.T)
    assert svds(adapted, k=1, return_singular_vectors=False)[0] == pytest.approx(operator.norm(), rel=1e-4)


def test_scipys_lsqr_gives_what_our_cgls_gives(operator):
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = operator.forward(x)
    ours = cgls(operator, target, tolerance=1e-13, slope_tolerance=1e-13, max_steps=300).value
    theirs = lsqr(to_scipy(operator), target.flatten().numpy(), atol=1e-14, btol=1e-14, iter_lim=300)[0]
    assert np.allclose(theirs, ours.flatten().numpy(), atol=1e-9)


def test_single_precision_stays_single(operator):
    adapted = to_scipy(operator.to(torch.float32))
    assert adapted.dtype == np.float32
    assert (adapted @ np.ones(adapted.shape[1])).dtype == np.float32


def test_any_operator_of_the_protocol(operator):
    matrix = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert np.allclose(to_scipy(MatrixOperator(matrix)) @ np.eye(3), matrix.numpy())


def test_pylops_finds_the_adjoint_adjoint(operator):
    pylops = pytest.importorskip("pylops")
    adapted = to_pylops(operator)
    assert pylops.utils.dottest(adapted, *adapted.shape, rtol=1e-10)
    x = np.random.default_rng(0).standard_normal(operator.input_shape)
    assert np.allclose(adapted @ x, operator.forward(torch.from_numpy(x)[None])[0].numpy())
    target = operator.forward(torch.from_numpy(x)[None])
    ours = cgls(operator, target, tolerance=1e-13, slope_tolerance=1e-13, max_steps=300).value
    theirs = pylops.optimization.basic.cgls(adapted, target[0].numpy().ravel(), niter=300, tol=1e-14)[0]
    assert np.allclose(theirs.ravel(), ours.flatten().numpy(), atol=1e-8)


def test_deepinv_finds_the_adjoint_adjoint(operator):
    pytest.importorskip("deepinv")
    physics = to_deepinv(operator)
    u = torch.randn(2, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert physics.adjointness_test(u) < 1e-12
    assert torch.equal(physics.A(u), operator.forward(u))


@pytest.mark.parametrize(("adapt", "package"), [(to_pylops, "pylops"), (to_deepinv, "deepinv")])
def test_an_absent_package_is_one_line(operator, monkeypatch, adapt, package):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [_Without(package), *sys.meta_path])
    with pytest.raises(UnconvError, match=rf"^{package} is not installed; get it with: pip install 'unconv\["):
        adapt(operator)


class _Without:
    """Finds a package nowhere."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)
