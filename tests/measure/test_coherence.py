"""Against the rows of the dense matrix W at all their places."""

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open

from cases import draw
from strategies import convolutions
from unconv.measure.coherence import coherence, correlation_table
from unconv.operators import ConvOperator


def of(weight: torch.Tensor, **geometry) -> ConvOperator:
    """A bank on the smallest input that holds its filters."""
    spread = [d * (n - 1) + 1 for n, d in zip(weight.shape[2:], geometry.get("dilation", (1,) * weight.ndim))]
    return ConvOperator(weight, (weight.shape[1] * geometry.get("groups", 1), *spread), **geometry)


def gram_from_the_middle(bank: ConvOperator) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Gram matrix rows of W for the middle place of a map just wider than all overlaps, ``(K, K, *map)``."""
    geometry = list(zip(bank.weight.shape[2:], bank.stride, bank.dilation, strict=True))
    reach = tuple(d * (k - 1) // t for k, t, d in geometry)
    operator = bank.unpadded([(2 * r + 2) * t + d * (k - 1) + 1 for r, (k, t, d) in zip(reach, geometry, strict=True)])
    rows = operator.to_dense().reshape(*operator.output_shape, -1)
    middle = rows[(slice(None), *(r + 1 for r in reach))]
    return torch.einsum("ix,j...x->ij...", middle, rows), reach


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_table_is_the_gram_matrix_of_the_rows(bank) -> None:
    gram, reach = gram_from_the_middle(bank)
    inner = (slice(None), slice(None), *(slice(1, 2 * r + 2) for r in reach))
    torch.testing.assert_close(correlation_table(bank), gram[inner], rtol=0, atol=1e-12)
    gram[inner] = 0
    assert gram.abs().max() == 0  # the table leaves no overlap out


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_coherence_is_that_of_the_rows(bank) -> None:
    count = len(bank.weight)
    gram, reach = gram_from_the_middle(bank.normalised())
    centre = tuple(r + 1 for r in reach)
    found = coherence(bank)
    cosines = {(i, j): gram[(i, j, *centre)].item() for i, j in product(range(count), repeat=2) if i != j}
    if count > 1:
        assert found.signed == pytest.approx(max(cosines.values()), abs=1e-12)
        assert found.absolute == pytest.approx(max(map(abs, cosines.values())), abs=1e-12)
    for i in range(count):
        gram[(i, i, *centre)] = 0
    assert found.shifted == pytest.approx(gram.abs().max().item(), abs=1e-12)
    assert found.signed <= found.absolute <= found.shifted or count == 1


def test_opposite_filters_differ_in_sign_only_and_groups_see_different_channels() -> None:
    found = coherence(of(torch.tensor([[[1.0, 2.0]], [[-1.0, -2.0]]])))
    assert found.signed == pytest.approx(-1)
    assert found.absolute == found.shifted == pytest.approx(1)
    assert found.absolute <= 1
    apart = coherence(of(torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]), groups=2))
    assert (apart.signed, apart.absolute) == (0.0, 0.0)
    assert apart.shifted == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("key", "signed"),
    [("features.2", 0.9066), ("features.5", 0.7236), ("features.7", 0.6254), ("features.10", 0.6692)],
    ids=["conv1_2", "conv2_1", "conv2_2", "conv3_1"],
)
def test_vgg19(research_data: Path, key: str, signed: float) -> None:
    path = research_data / "vgg19-blocks1-3.safetensors"
    if not path.is_file():
        pytest.skip("research data absent: vgg19-blocks1-3.safetensors is not in UNCONV_DATA")
    with safe_open(path, "pt") as file:
        found = coherence(of(file.get_tensor(f"{key}.weight")))
    assert round(found.signed, 4) == signed
    assert found.signed <= found.absolute <= found.shifted <= 1


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e18])
def test_the_size_of_a_filter_does_not_count(scale: float) -> None:
    filters = draw(5, 2, 3, 3, seed=3, dtype=torch.float32)
    alone = coherence(of(filters))
    filters[2] *= scale
    found = coherence(of(filters))
    assert (found.signed, found.absolute) == pytest.approx((alone.signed, alone.absolute), rel=1e-5)
    assert (found.shifted, found.zero_filters) == (pytest.approx(alone.shifted, rel=1e-5), 0)


def test_pairs_with_a_zero_filter_do_not_count() -> None:
    kept = draw(5, 2, 3, 3, seed=3, dtype=torch.float32)
    alone, found = coherence(of(kept)), coherence(of(torch.cat([kept[:2], torch.zeros(2, 2, 3, 3), kept[2:]])))
    assert (found.signed, found.absolute, found.shifted) == (alone.signed, alone.absolute, alone.shifted)
    assert found.zero_filters == 2
    opposite = torch.stack([kept[0], -kept[0], torch.zeros_like(kept[0])])
    assert coherence(of(opposite)).signed == pytest.approx(-1)  # not the 0 of a pair that has no cosine
    assert coherence(of(opposite[1:])).signed == 0
