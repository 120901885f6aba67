"""Certificates of conv blocks against dense matrices of the same network and against the network itself."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cases
from unconv.evaluate.network import Captured, CapturedStream, Network
from unconv.evaluate.theory import certificate_document, count_nonzeros, pooled_fraction
from unconv.images import Batch, ImageStream
from unconv.preprocessing import Preprocess
from unconv.tracing import capture_inputs

BLOCKS = ("0", "3", "6")


@pytest.fixture
def network() -> Network:
    return Network(cases.vgg().double().eval().requires_grad_(False), Preprocess())


def example(network: Network, seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float64) -> Captured:
    """One random image on its way through a network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, size, size, generator=generator, dtype=dtype)
    blocks = network.conv_blocks(x)
    inputs = capture_inputs(network.module, blocks.names, x)
    return Captured(Batch((f"{seed}.png",), x, (seed,)), blocks, {}, inputs)


def document(network: Network, name: str, one: Captured, region: Any = 2) -> dict[str, Any]:
    return certificate_document(network, one.blocks.get(name), region, 5, [one])


def up_to(network: Network, name: str, begin: int = 0) -> nn.Module:
    """The network from the image, or a module, to the code of a conv block, as torch runs it."""
    return network.module[begin : int(name) + 3]  # pyright: ignore


def equations(function: nn.Module, x: Tensor) -> Tensor:
    """The known equations of a code behind ReLU: rows of the derivative at an input, dense, from torch's autograd."""
    rows = torch.autograd.functional.jacobian(function, x).reshape(-1, x.numel())
    return rows[function(x).flatten() > 0]


@pytest.mark.parametrize("name", BLOCKS)
def test_maps_are_those_of_the_network(network, name):
    one = example(network)
    found = document(network, name, one)
    assert found["notes"] == []
    for of, matrix in (
        ("input", equations(up_to(network, name, int(name)), one.inputs[name])),
        ("image", equations(up_to(network, name), one.batch.inputs)),
    ):
        code = found[of]
        values = torch.linalg.svdvals(matrix)
        rank = int((values > 1e-10 * values[0]).sum())
        assert (code["equations"], code["unknowns"]) == matrix.shape
        assert code["undetermined"] == matrix.shape[1] - rank
        assert code["sigma"]["upper"] == pytest.approx(values[rank - 1].item(), rel=1e-6)
        assert code["sigma"]["lower"] <= values[rank - 1].item() * (1 + 1e-9)


@pytest.mark.parametrize("name", BLOCKS)
def test_images_of_nearby_codes_are_as_near_as_promised(network, name):
    # the network itself, not its derivative: small changes that flip no gate and no switch
    one = example(network, 1)
    limit = document(network, name, one)["image"]["moves"]["upper"]
    function, x = up_to(network, name), one.batch.inputs
    matrix = equations(function, x)
    seen = torch.linalg.pinv(matrix, rtol=1e-10) @ matrix
    generator = torch.Generator().manual_seed(3)
    code = function(x)
    for _ in range(20):
        step = 1e-7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        change = (function(x + step) - code).norm().item()
        assert (seen @ step.flatten()).norm().item() <= change * limit * (1 + 1e-6)


def test_a_zero_filter_is_a_note_and_the_rest_stays(network):
    network.module[3].weight.data[2] = 0
    found = document(network, "3", example(network))
    assert found["delta_k"] is None
    (note,) = found["notes"]
    assert "filter 2 of 16 is zero" in note
    assert found["image"]["equations"] > 0


def test_what_does_not_fit_is_a_note(network):
    block = example(network).blocks.get("3")
    found = certificate_document(network, block, 2, 10**6, [])
    assert found["delta_k"] is found["input"] is found["image"] is None
    assert "from 1 to their number" in found["notes"][0]


def test_places_that_overlapping_regions_share_count_once():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2))
    network = Network(module.double().eval(), lambda picture: torch.zeros(3, 8, 8))  # pyright: ignore
    one = example(network, size=9)
    found = document(network, "2", one, region=one.blocks.get("2").pooling)
    matrix = equations(module, one.batch.inputs)
    distinct = torch.unique(matrix, dim=0)
    assert len(distinct) < len(matrix)
    assert found["image"]["equations"] == len(distinct) == found["input"]["equations"]
    assert found["image"]["sigma"]["upper"] == pytest.approx(torch.linalg.svdvals(distinct)[-1].item(), rel=1e-6)


def test_smooth_activations_are_certified_by_their_derivative():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()).double().eval()
    network = Network(module, lambda picture: torch.zeros(3, 8, 8))  # pyright: ignore
    one = example(network)
    found = document(network, "2", one)
    matrix = torch.autograd.functional.jacobian(module, one.batch.inputs).reshape(64, 192)
    assert found["image"]["sigma"]["upper"] == pytest.approx(torch.linalg.svdvals(matrix)[-1].item(), rel=1e-6)


def test_nonzeros_are_counted(network, tmp_path, smooth_pictures):
    paths = smooth_pictures(tmp_path, 3, (8, 8))
    network.module.float()
    stream = CapturedStream(network, ImageStream(paths, network.preprocess, 2), BLOCKS)
    counts, skipped = count_nonzeros(stream, BLOCKS, 2)
    assert skipped == []
    x = torch.cat([batch.inputs for batch in stream.images])
    with torch.no_grad():
        first, last = network.module[:3](x), network.module[:8](x)  # pyright: ignore
    assert counts["0"].pooled.fraction == (first != 0).double().mean()
    # a block without max pooling is counted behind an imposed one too
    assert counts["6"].activation.fraction == (last != 0).double().mean()
    assert pooled_fraction(counts, "0") == counts["0"].pooled.fraction
    imposed = nn.functional.max_pool2d(network.module[:6](x), 2)  # pyright: ignore
    assert pooled_fraction(counts, "3") == (imposed != 0).double().mean()


def test_images_on_another_path_are_named(tmp_path):
    for i, grey in enumerate((200, 210, 10)):
        Image.new("RGB", (8, 8), (grey, grey, grey - 5)).save(tmp_path / f"{i}.png")
    images = ImageStream(sorted(tmp_path.glob("*.png")), Preprocess(), 1, root=tmp_path)
    stream = CapturedStream(Network(cases.branching().eval(), images.preprocess), images, ["b"])
    _, skipped = count_nonzeros(stream, ["b"])
    assert [image.file for image in skipped] == ["2.png"]


def test_an_undetermined_direction_is_shown_and_kept(network):
    one = example(network)
    kept: list[tuple[int, Tensor]] = []

    def save(image: int, pixels: Tensor) -> str:
        kept.append((image, pixels))
        return "images/x.png"

    # behind the average pooling 4 places of 16 channels are left of 192 dimensions
    found = certificate_document(network, one.blocks.get("6"), 1, 5, [one], save)
    assert found["image"]["undetermined"] > 0
    assert found["direction"]["undetermined"]
    assert found["direction"]["gain"] < 1e-9 * found["direction"]["largest"]
    assert found["direction"]["picture"] == "images/x.png"
    ((index, pixels),) = kept
    assert index == 0
    assert pixels.shape == (3, 8, 8)
    assert 0 <= pixels.min() < 0.5 < pixels.max() <= 1
    # the picture is grey plus the direction, up to entries that saturate, and the network does not see it
    step = (pixels - 0.5) * 2
    rows = equations(up_to(network, "6"), one.batch.inputs)
    assert (rows @ step.flatten()).norm() < 0.2 * torch.linalg.svdvals(rows)[0] * step.norm()


def test_a_code_behind_no_gradient_is_certified_for_the_input_alone():
    network = Network(cases.without_gradient("detach").eval().requires_grad_(False), Preprocess())
    one = example(network, dtype=torch.float32)
    found = document(network, "b", one)
    assert found["input"] is not None
    assert found["image"] is None
    assert any("no gradient passes" in note for note in found["notes"])
