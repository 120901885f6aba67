"""Algorithm 1: one step is a layer of torch, many steps recover sparse codes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import draw
from unconv.errors import UsageError
from unconv.operators import ConvOperator
from unconv.recover import iht, niht
from unconv.sparsity import Pooled, TopK
from unconv.testing import MatrixOperator


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1, 3]),
    st.integers(0, 1),
    st.integers(6, 11),
    st.integers(0, 999),
)
def test_one_step_is_conv_pool_unpool_conv_transpose_of_torch(channels, filters, kernel, padding, size, seed):
    """The exact statement of section 1, in float32 and bit by bit except for the order of sums in W^T."""
    module = torch.nn.Conv2d(channels, filters, kernel, padding=padding, bias=False)
    module.weight.data = draw(filters, channels, kernel, kernel, seed=seed, dtype=torch.float32)
    x = draw(2, channels, size, size + 1, seed=seed + 1, dtype=torch.float32)
    operator = ConvOperator(module.weight, x.shape[1:], padding=padding)
    with torch.no_grad():
        h = module(x)
        values, switches = F.max_pool2d(h, 2, return_indices=True)
        unpooled = F.max_unpool2d(values, switches, 2, output_size=h.shape[2:])
        back = F.conv_transpose2d(unpooled, module.weight, padding=padding)
    found = iht(operator, x, Pooled(2, signed=True))
    assert torch.equal(found.value.code.values, values)
    assert found.value.code.switches is not None
    assert torch.equal(found.value.code.switches, switches)
    assert torch.equal(found.value.code.dense(), unpooled)
    assert torch.allclose(found.value.reconstruction, back, atol=1e-5, rtol=1e-5)


def test_many_steps_recover_a_code_from_a_tight_operator():
    """Gaussian matrices of this shape satisfy the RIP well enough that every sparse code is found."""
    operator = MatrixOperator(draw(40, 30) / 30**0.5)
    z = torch.zeros(5, 40, dtype=torch.float64)
    for i in range(5):
        z[i, [3 * i, 3 * i + 7]] = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = iht(operator, operator.adjoint(z), TopK(2), steps=400, step_size=0.5, tolerance=1e-8)
    assert set(found.status) == {"converged"}
    assert torch.allclose(found.value.code.dense(), z, atol=1e-6)


def test_the_best_iterate_is_kept_where_steps_are_too_long():
    operator = ConvOperator(draw(8, 4, 3), (4, 12))
    x = draw(3, 4, 12, seed=2)
    found = iht(operator, x, Pooled(2, k=9), steps=12, step_size=0.05)
    residual = (x - operator.adjoint(found.value.code.dense())).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert (found.history.diff(dim=0) > 0).any()
    assert torch.allclose(residual, found.residual)
    assert torch.allclose(found.value.reconstruction, operator.adjoint(found.value.code.dense()))


@pytest.mark.parametrize("solver", [iht, niht])
def test_a_bare_matrix_is_refused_with_the_operator_that_it_is(solver):
    A = torch.randn(12, 8, dtype=torch.float64)
    x = torch.randn(2, 8, 1, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"operator is a Tensor; .*ConvOperator\(A\[:, :, None\], \(inputs, 1\)\)"):
        solver(A, x, Pooled(1, 3))
    found = solver(ConvOperator(A[:, :, None], (8, 1)), x, Pooled(1, 3)).value
    assert torch.allclose(found.reconstruction[..., 0], found.code.dense()[..., 0] @ A)


def test_nan_is_no_convergence():
    operator = ConvOperator(draw(8, 4, 3), (4, 12)).normalised()
    x = draw(2, 4, 12)
    x[1, 0, 0] = float("nan")
    found = iht(operator, x, Pooled(2, k=3), tolerance=9.0)
    assert found.status == ("converged", "max_steps")
    assert found.residual.isnan().tolist() == [False, True]


def test_another_floating_point_type_is_refused_with_the_remedy():
    with pytest.raises(UsageError, match=r"input has dtype torch.float64, the operator torch.float32; give x.to"):
        iht(ConvOperator(draw(8, 4, 3).float(), (4, 12)), draw(2, 4, 12).double(), Pooled(2, k=3))
