import math

import pytest
import torch
from torch import nn

from cases import gaussian
from unconv.certify.stability import certify, known_entries
from unconv.errors import UsageError
from unconv.inversion.jacobian import Jacobian
from unconv.operators import ConvOperator
from unconv.sparsity import AveragePool, Code, Pooled, Window


def known_rows(filters, share):
    """An operator, a mask of so many of its outputs, and their rows."""
    operator = gaussian(filters, 3, 3, 3, size=(6, 6))
    mask = torch.rand(operator.output_shape, generator=torch.Generator().manual_seed(1)) < share
    return operator, mask, operator.to_dense()[mask.flatten()]


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_small_systems_are_decomposed_whole(share):
    operator, mask, matrix = known_rows(8, share)
    found = certify(operator, mask)
    rank = int(torch.linalg.matrix_rank(matrix))
    assert found.exact
    assert found.undetermined == 108 - rank
    assert found.sigma == pytest.approx(torch.linalg.svdvals(matrix)[rank - 1].item())
    assert found.direction.norm().item() == pytest.approx(1)
    assert found.gain == pytest.approx((matrix @ found.direction.flatten()).norm().item(), abs=1e-10)
    assert (found.gain < 1e-9) == (found.undetermined > 0)


@pytest.mark.parametrize("share", [0.15, 1.0])
def test_lanczos_agrees_with_the_dense_decomposition(share):
    operator, mask, matrix = known_rows(8, share)
    values = torch.linalg.svdvals(matrix)
    found = certify(operator, mask, steps=108, tolerance=1e-9, whole=0)
    assert found.steps > 0
    assert found.sigma == pytest.approx(values[-1].item(), rel=1e-6)
    assert found.interval[0] <= values[-1].item() <= found.interval[1]
    assert found.largest == pytest.approx(values[0].item(), rel=1e-6)
    assert found.undetermined == max(0, 108 - int(mask.sum()))
    assert found.gain <= (1e-6 if found.undetermined else found.sigma * (1 + 1e-6))


@pytest.mark.parametrize("whole", [0, 1500])
def test_what_rounding_hides_is_no_singular_value(whole):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 3, padding=1))  # 36 of 108 dimensions end in the first one
    found = certify(Jacobian(net.requires_grad_(False), torch.rand(1, 3, 6, 6)), whole=whole)
    assert (found.exact, found.resolved, found.observed_error(1)) == (False, False, math.inf)
    assert "at least 0 of 108 dimensions (0%) are open" in str(found)
    assert "moves" not in str(found)


def test_words_say_only_what_is_known():
    operator = gaussian(8, 3, 3, 3, size=(6, 6))
    done, early = (certify(operator, steps=n, tolerance=1e-9, whole=0) for n in (108, 3))
    assert f"an error of 1 in the code moves the rest by {done.observed_error(1):.3g}" in str(done)
    assert early.interval[0] == 0
    assert str(early).endswith("no bound was found")


def test_floor_is_positive_and_true_for_a_well_conditioned_map():
    # K >> M: the rows are a nearly tight frame
    operator = gaussian(256, 2, 3, size=(60,), padding=2)
    found = certify(operator, steps=100, tolerance=1e-6, whole=0)
    smallest = torch.linalg.svdvals(operator.to_dense())[-1].item()
    assert 0 < found.probabilistic_lower_bound <= smallest <= found.sigma
    assert found.error_bound(1.0) >= 1 / smallest >= found.observed_error(1.0)
    assert "but for a chance of 1e-09" in str(found)


@pytest.mark.parametrize("share", [0.15, 1.0])
@pytest.mark.parametrize("whole", [1500, 0])
def test_no_input_moves_further_than_promised(share, whole):
    operator, mask, matrix = known_rows(12, share)
    found = certify(operator, mask, steps=108, tolerance=1e-9, whole=whole)
    inverse = torch.linalg.pinv(matrix)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(108, generator=generator, dtype=torch.float64)
    u, _, _ = torch.linalg.svd(matrix, full_matrices=False)
    errors = [*torch.randn(50, len(matrix), generator=generator, dtype=torch.float64), u[:, -1]]
    for size in (1e-3, 1.0):
        promised = found.error_bound(size)
        moves = [(inverse @ (matrix @ x + size * e / e.norm()) - inverse @ matrix @ x).norm().item() for e in errors]
        assert max(moves) <= promised * (1 + 1e-9)
        # the last error is the worst one
        assert moves[-1] == pytest.approx(found.observed_error(size), rel=1e-5)


def test_unseen_part_of_an_image_is_shown():
    operator = gaussian(4, 3, 3, 3, size=(6, 6))
    image = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = operator.to_dense()
    found = certify(operator, start=image, whole=0)
    unseen = image.flatten() - torch.linalg.pinv(matrix) @ matrix @ image.flatten()
    assert torch.allclose(found.direction.flatten(), unseen / unseen.norm(), atol=1e-6)


def test_no_direction_is_sought_where_none_is_asked_for():
    operator = gaussian(4, 3, 3, 3, size=(6, 6))
    whole, bare = (certify(operator, steps=40, seek=seek, whole=0) for seek in (None, 0))
    assert (bare.direction, bare.gain) == (None, None)
    assert (bare.sigma, bare.interval, bare.undetermined) == (whole.sigma, whole.interval, whole.undetermined)
    rough, fine = (certify(operator, steps=40, seek=seek, whole=0) for seek in (2, 100))
    assert 0 <= fine.gain < 1e-6 < rough.gain


def test_a_network_leaves_open_what_its_derivative_does():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 2)).double().eval()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(network, x).reshape(9, 72)
    found = certify(Jacobian(network, x))
    assert found.undetermined == 72 - int(torch.linalg.matrix_rank(expected))


def test_known_entries_are_what_the_code_tells():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 3, 4, 4, generator=generator)
    code = Pooled(2, signed=True).project(h)
    assert torch.equal(known_entries(code, rectified=False).sum((1, 2, 3)), torch.tensor([12, 12]))
    rectified = Pooled(2, signed=True).project(h.relu())
    assert torch.equal(known_entries(rectified, rectified=True), (code.dense() > 0))
    dense = Code(h.relu(), None, (3, 4, 4))
    assert torch.equal(known_entries(dense, rectified=True), h > 0)
    average = Code(h[..., :2, :2], None, (3, 4, 4), AveragePool(Window.of(2, 2)))
    with pytest.raises(UsageError, match="names no places"):
        known_entries(average, rectified=True)


def test_nothing_known_leaves_everything_open():
    operator = gaussian(4, 2, 3, size=(6,))
    found = certify(operator, torch.zeros(operator.output_shape, dtype=torch.bool))
    assert found.undetermined == found.unknowns == 12
    assert found.error_bound(1.0) == math.inf
    assert str(found) == "12 of 12 dimensions (100%) are open"


@pytest.mark.parametrize("steps", [60, 120, 200])
def test_a_direction_that_lanczos_misses_is_not_promised_away(steps):
    """One entry of the input is seen by nothing, in a system too large to decompose."""
    weight = torch.zeros(4, 2, 3, dtype=torch.float64)
    weight[0, 0] = torch.tensor([0.5, 4.0, 0.5])
    weight[1, 0] = torch.tensor([-0.7, 2.0, 1.9])
    weight[2, 1, 1], weight[3, 1, 1] = 0.9, 0.19**0.5
    operator = ConvOperator(weight, (2, 5000), padding=1)
    mask = torch.ones(operator.output_shape, dtype=torch.bool)
    mask[2:, 2500] = False
    found = certify(operator, mask, steps=steps, tolerance=0.05)
    assert found.error_bound(1) == math.inf
    assert "none by more" not in str(found)
