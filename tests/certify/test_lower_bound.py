import math

import pytest
import torch

from cases import draw, gaussian
from unconv.certify.exact import exact_delta
from unconv.certify.lower_bound import deviation_of, lower_bound
from unconv.sparsity import Pooled, Window


def check_witness(found, operator, region, k, boundary):
    """At most k non-zeros, one per region (counted with torch's pooling), and the bound is attained."""
    z = found.witness
    assert int((z != 0).sum()) <= k
    window = Pooled(region).window(z.shape[1:])
    share = torch.nn.functional.avg_pool2d((z[None] != 0).double(), window.kernel, window.stride)
    assert share.max() * math.prod(window.kernel) <= 1 + 1e-9
    used = operator.full() if boundary == "full" else operator
    assert abs((used.adjoint(z).square().sum() / z.square().sum()).item() - 1) >= found.delta


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("twice", [False, True])
def test_finds_the_worst_vector_of_small_cases(seed, twice):
    operator = gaussian(5, 2, 3, size=(7,), seed=seed)
    found = lower_bound(operator, "map", 2, twice=twice, effort=0.2)
    assert found.delta == pytest.approx(exact_delta(operator, "map", 2, twice=twice).delta, abs=1e-9)


@pytest.mark.parametrize("boundary", ["full", "cropped"])
@pytest.mark.parametrize("region", [2, Window.of(2, 3, stride=2), "map"])
def test_witness_is_of_the_model_and_attains_the_bound(region, boundary):
    operator = gaussian(6, 3, 3, 3, size=(7, 7), padding=1)
    check_witness(lower_bound(operator, region, 5, boundary=boundary, effort=0.02), operator, region, 5, boundary)


@pytest.mark.parametrize("boundary", ["full", "cropped"])
@pytest.mark.parametrize("region", [2, "map"])
def test_a_large_map_is_searched_on_a_part_of_it(region, boundary):
    operator = gaussian(8, 2, 3, 3, size=(61, 61), padding=1)
    found = lower_bound(operator, region, 4, boundary=boundary, effort=0.02)
    check_witness(found, operator, region, 4, boundary)
    nearby = gaussian(8, 2, 3, 3, size=(14, 14), padding=1)
    assert found.delta >= 0.8 * lower_bound(nearby, region, 4, boundary=boundary, effort=0.02).delta


def test_large_supports_beat_random_vectors():
    operator = gaussian(32, 16, 3, 3, size=(8, 8), padding=1)
    k = 200
    found = lower_bound(operator, 2, k, effort=0.05)
    z = Pooled(2, k).project(draw(200, *operator.output_shape)).dense()
    squares = operator.full().adjoint(z).flatten(1).square().sum(1) / z.flatten(1).square().sum(1)
    assert found.delta > 1.5 * (squares - 1).abs().max().item()


def test_attained_is_never_above_the_value_in_higher_precision():
    operator = gaussian(3, 2, 3, size=(6,))
    found = deviation_of(operator, draw(*operator.output_shape))
    columns = [[float(v) for v in row] for row in operator.to_dense().T]
    flat = [float(v) for v in found.witness.flatten()]
    square = math.fsum(math.fsum(a * b for a, b in zip(row, flat)) ** 2 for row in columns)
    assert abs(square / math.fsum(v * v for v in flat) - 1) >= found.delta
