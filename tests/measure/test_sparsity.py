import math

import pytest
import torch
import torch.nn.functional as F

from unconv.measure.sparsity import NonZeros, SparsityStatistics, k_from


def activations(seed: int, images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    h = torch.randn(images, 5, 6, 6, generator=torch.Generator().manual_seed(seed)).sub(0.4).relu()
    return h, F.max_pool2d(h, 2)


def test_percentages_are_those_of_all_entries() -> None:
    activity = SparsityStatistics()
    h, pooled = activations(0)
    for part in torch.arange(12).split(5):
        activity.update("conv", h[part], pooled[part])
    block = activity["conv"]
    assert block.activation.percent == pytest.approx(100 * (h != 0).double().mean().item(), rel=1e-14)
    assert block.pooled.fraction == pytest.approx((pooled != 0).double().mean().item(), rel=1e-14)
    assert (block.activation.images, block.activation.entries) == (12, 12 * 5 * 36)
    assert block.pooled.entries == 12 * 5 * 9
    assert block.pooled.fraction > block.activation.fraction


def test_standard_error_of_images_of_two_sizes() -> None:
    small, large = activations(2)[0][:, :, :3, :3], activations(3)[0]
    counted = NonZeros.of(small) + NonZeros.of(large)
    c = torch.cat([(h != 0).flatten(1).sum(1) for h in (small, large)]).double()
    e = torch.tensor([45.0] * 12 + [180.0] * 12, dtype=torch.float64)
    residual = c - c.sum() / e.sum() * e
    assert counted.fraction == pytest.approx((c.sum() / e.sum()).item(), rel=1e-14)
    expected = (24 / 23 * residual.square().sum()).sqrt() / e.sum()
    assert counted.standard_error == pytest.approx(expected.item(), rel=1e-12)


def test_merging_processes_equals_one_process() -> None:
    alone, ranks = SparsityStatistics(), [SparsityStatistics(), SparsityStatistics()]
    for seed in range(4):
        h, pooled = activations(seed, images=seed + 1)
        for block in ("a", "b"):
            alone.update(block, h, pooled)
            ranks[seed % 2].update(block, h, pooled)
    for activity in (ranks[1], alone):
        activity.update("only there", activations(9)[0])
    ranks[0].merge(ranks[1])
    assert ranks[0] == alone
    assert list(ranks[0]) == ["a", "b", "only there"]
    assert len(ranks[0]) == 3


def test_one_image_has_no_standard_error_and_a_block_without_pooling_pools_nothing() -> None:
    assert math.isnan(NonZeros.of(torch.ones(1, 3)).standard_error)
    assert math.isnan(NonZeros().fraction)
    activity = SparsityStatistics()
    activity.update("conv", torch.tensor([[[1.0, 0.0, 2.0, 0.0]]]))
    assert activity["conv"].pooled.fraction == activity["conv"].activation.fraction == 0.5


@pytest.mark.parametrize(
    ("fraction", "regions", "k"), [(0.131, 512 * 49, 3287), (1.0, 10, 10), (0.0, 10, 1), (0.49, 1, 1), (0.5, 10, 5)]
)
def test_k_from_fraction(fraction: float, regions: int, k: int) -> None:
    assert k_from(fraction, regions) == k
