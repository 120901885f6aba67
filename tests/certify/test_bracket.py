"""Brackets of dense matrices and other linear maps, against brute force over supports and against convolutions."""

import pytest
import torch
from tests.certify.conftest import brute_force

from cases import draw, gaussian
from unconv.certify.bracket import delta_bracket
from unconv.errors import UnconvError, UsageError
from unconv.operators import ConvOperator
from unconv.testing import MatrixOperator


def rows(m=8, n=12, seed=0):
    return torch.nn.functional.normalize(draw(m, n, seed=seed))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 3, 3], [2, 0, 2, 1, 0, 2, 1, 1], [5, -1, 5, 7, 9, 9, -1, 7]])
@pytest.mark.parametrize("twice", [False, True])
def test_a_matrix_with_blocks_against_brute_force(labels, twice):
    matrix = rows()
    k = 2
    expected, _ = brute_force(matrix, labels, 2 * k if twice else k, 2 if twice else 1)
    for effort in (1e-4, 1.0):  # too little to enumerate, and enough
        found = delta_bracket(matrix, labels, k, twice=twice, effort=effort)
        assert found.lower - 1e-9 <= expected <= found.upper + 1e-9
        z = found.witness
        assert abs((matrix.T @ z).square().sum().item() / z.square().sum().item() - 1) >= found.lower
        assert not z[torch.tensor(labels) < 0].any()
    assert found.lower == pytest.approx(expected, abs=1e-9)
    assert found.upper == pytest.approx(expected, abs=1e-9)


def test_every_form_of_one_map_has_one_bracket():
    matrix = rows()
    forms = (matrix, matrix.numpy(), MatrixOperator(matrix))
    found = [delta_bracket(form, 1, 3) for form in forms]
    assert len({(one.lower, one.upper) for one in found}) == 1
    assert found[0].lower == pytest.approx(brute_force(matrix, range(8), 3, 1)[0], abs=1e-9)


@pytest.mark.parametrize("boundary", ["full", "cropped"])
def test_a_convolution_and_the_partition_that_it_has_agree(boundary):
    operator = gaussian(4, 3, 3, size=(6,), padding=1)
    partition = torch.arange(4)[:, None].expand(4, 6)
    ours = delta_bracket(operator, partition, 2, boundary=boundary)
    theirs = delta_bracket(operator, "map", 2, boundary=boundary)
    assert ours.lower == pytest.approx(theirs.lower, abs=1e-9)
    assert ours.upper == pytest.approx(theirs.upper, abs=1e-9)
    assert ours.witness.shape == theirs.witness.shape


def test_more_rows_than_can_be_enumerated():
    matrix = rows(60, 400)
    found = delta_bracket(matrix, torch.arange(60) // 3, 6, effort=0.05)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        support = 3 * torch.randperm(20, generator=generator)[:6] + torch.randint(3, (6,), generator=generator)
        values = torch.linalg.eigvalsh(matrix[support] @ matrix[support].T)
        assert max(values[-1] - 1, 1 - values[0]) <= found.upper
    assert 0 < found.lower <= found.upper < 1
    assert found.how.startswith("attacked")


def test_bad_input_is_one_line():
    operator, matrix = ConvOperator(torch.ones(2, 2, 3), (2, 9)), rows()
    broken = matrix.clone()
    broken[3] = 0
    for call, kind, text in [
        (lambda: delta_bracket(matrix, "map", 2), UsageError, "region is 'map'; for this map give the block of each"),
        (lambda: delta_bracket(operator, "pool", 2), UsageError, "region is 'pool'; give its size"),
        (lambda: delta_bracket(matrix, [0, 1], 1), UsageError, "each of its 8 outputs"),
        (lambda: delta_bracket(matrix, [-1] * 8, 1), UsageError, "no output in a block"),
        (lambda: delta_bracket(matrix[0], 1, 1), UsageError, "give a real matrix"),
        (lambda: delta_bracket([[1.0]], 1, 1), UsageError, "operator is a list"),  # pyright: ignore
        (lambda: delta_bracket(broken, 1, 1), UnconvError, "row 3 of 8 is zero"),
        (lambda: delta_bracket(matrix, 1, 9), UnconvError, "an integer from 1 to their number, 8"),
        (lambda: delta_bracket(torch.ones(5000, 1), 1, 1), UnconvError, "5000 outputs"),
    ]:
        with pytest.raises(kind, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
