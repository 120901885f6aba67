"""Algorithm 2 against its three steps, done with the lasso of scikit-learn."""

import torch
from tests.recover.conftest import lasso

from cases import draw
from unconv.operators import ConvOperator
from unconv.recover import activation_recovery
from unconv.sparsity import Pooled


def test_the_three_steps_are_those_of_the_paper():
    operator = ConvOperator(draw(6, 2, 3, 3), (2, 6, 6))
    x = draw(2, 2, 6, 6, seed=1)
    model = Pooled(2, k=7)
    found = activation_recovery(operator, x, model, weight=1.5, tolerance=1e-11, max_steps=5000)
    assert found.status == ("converged", "converged")
    dense = operator.to_dense().T
    for row in range(2):
        first = lasso(dense, x[row].flatten(), 1.5)
        kept = model.project(first.reshape(1, 6, 4, 4))
        support = kept.support().flatten()
        expected = torch.zeros(96, dtype=torch.float64)
        expected[support] = lasso(dense[:, support], x[row].flatten(), 1.5)
        code = found.value.code
        assert torch.allclose(code.dense()[row].flatten(), expected, atol=1e-5)
        assert code.switches is not None
        assert torch.equal(code.switches[row][kept.values[0] != 0], kept.switches[0][kept.values[0] != 0])
    assert torch.allclose(found.value.reconstruction, operator.adjoint(found.value.code.dense()))
