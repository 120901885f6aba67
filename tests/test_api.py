"""The Python functions against the command line, and against the parts that they are made of."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unconv
from unconv.cli import main
from unconv.decode.convex import convex


@pytest.fixture(autouse=True)
def beside_the_tiny_networks(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)


@pytest.fixture
def network():
    return unconv.load_model("tiny_networks:vgg").module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two smooth pictures and one that cannot be read."""
    made = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((16, 16)).save(made / f"{i}.png")
    (made / "broken.png").write_bytes(b"no picture")
    return made


def tensors(folder):
    """The pictures as a network without preprocessing receives them."""
    pictures = [np.asarray(Image.open(folder / f"{i}.png")) for i in range(2)]
    return torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in pictures])


def test_importing_the_package_imports_no_torch():
    said = subprocess.run(
        [sys.executable, "-c", "import sys, unconv; print('torch' in sys.modules, callable(unconv.invert))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["False", "True"]


def test_every_public_name_is_there():
    for name in unconv.__all__:
        assert getattr(unconv, name) is not None
    assert set(unconv.__all__) <= set(dir(unconv))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unconv.nothing


def test_functions_that_share_a_packages_name_leave_the_package_whole():
    import unconv.inversion.methods
    import unconv.reporting.text as words

    assert unconv.inversion.methods.InversionMethod is not None
    assert words.METHODS
    assert list(inspect.signature(unconv.invert).parameters)[:3] == ["model", "layer", "images"]
    assert list(inspect.signature(unconv.report).parameters)[:3] == ["model", "images", "out"]


def test_python_and_the_command_line_find_the_same(folder, capsys):
    words = ["invert", "tiny_networks:vgg", "--stage", "3", "--images", str(folder), "--json"]
    assert main(words) == 0
    expected = json.loads(capsys.readouterr().out)
    found = unconv.invert("tiny_networks:vgg", "3", folder, progress=False)
    assert found.files == ("0.png", "1.png")
    assert [s.file for s in found.skipped] == ["broken.png"]
    assert found.relative_error.tolist() == pytest.approx([i["relative_error"] for i in expected["images"]])
    assert found.psnr.isnan().all()


def test_a_module_with_tensors_is_what_its_parts_compute(network, folder):
    x = tensors(folder)
    found = unconv.invert(network, "3", x, progress=False)
    stage = unconv.find_conv_blocks(network, x).get("3")
    inner = unconv.capture(network, ["3"], x)["3"]
    assert torch.equal(found.reference, inner)
    assert torch.allclose(found.estimate, convex(stage, stage.encode(inner)).value, atol=1e-5)
    error = (found.estimate - inner).flatten(1).norm(dim=1) / inner.flatten(1).norm(dim=1)
    assert found.relative_error.tolist() == pytest.approx(error.tolist(), rel=1e-5)


def test_files_pictures_and_tensors_are_the_same_images(network, folder):
    pictures = [Image.open(folder / f"{i}.png") for i in range(2)]
    ways = [[folder / "0.png", folder / "1.png"], pictures, tensors(folder), list(tensors(folder))]
    found = [unconv.invert(network, "0", given, method="min-norm", progress=False) for given in ways]
    for other in found[1:]:
        assert torch.allclose(other.estimate, found[0].estimate, atol=1e-6)
        assert other.psnr.tolist() == pytest.approx(found[0].psnr.tolist(), rel=1e-4)


def test_the_image_with_its_pictures(network, folder):
    found = unconv.invert(network, "3", tensors(folder), start="image", side_info="gates", effort=0.3, progress=False)
    assert found.way.method == "gauss-newton"
    assert found.estimate.shape == (2, 3, 16, 16)
    assert found.psnr.isfinite().all()
    html = found._repr_html_()
    assert html.count("<img") == 4
    assert "gauss-newton" in repr(found)


def test_a_stages_input_is_shown_as_maps(network, folder):
    found = unconv.invert(network, "3", tensors(folder), method="transpose", limit=1, progress=False)
    assert len(found.files) == 1
    assert found._repr_html_().count("<img") == 2


def test_tensors_beyond_pixels_are_shown_over_their_own_range(folder):
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
    grey = 5 * torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found = unconv.invert(net, "0", grey, progress=False)
    true, _ = found.pictures[0]
    assert (true.min().item(), true.max().item()) == (0, 1)
    assert found._repr_html_().count("<img") == 2


def test_the_callers_network_is_left_as_it_was(network, folder):
    network.train().double().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    unconv.invert(network, "0", tensors(folder), method="transpose", progress=False)
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_images_of_several_sizes_come_one_by_one(network):
    mixed = [torch.rand(3, 16, 16), torch.rand(3, 8, 12)]
    found = unconv.invert(network, "0", mixed, method="transpose", progress=False)
    assert [tuple(e.shape) for e in found.estimates] == [(3, 16, 16), (3, 8, 12)]
    with pytest.raises(ValueError, match="use estimates"):
        _ = found.estimate


def test_an_image_that_cannot_be_used_is_skipped_by_name(network, folder):
    x = tensors(folder)
    x[0, 0, 0, 0] = torch.nan
    found = unconv.invert(network, "0", x, method="transpose", progress=False)
    assert found.files == ("image-0001",)
    assert [(s.file, s.reason) for s in found.skipped] == [("image-0000", "NaN or infinite values")]


def test_a_report_of_a_module_and_again(network, folder, tmp_path):
    settings = {"methods": ("transpose",), "samples": 5, "effort": 0.1, "progress": False}
    found = unconv.report(network, tensors(folder), tmp_path / "run", **settings)
    assert found.page == tmp_path / "run" / "report.html"
    assert [stage["stage"] for stage in found.stages] == ["0", "3", "6"]
    assert "unconv.report(model: Sequential, images" in found.page.read_text()
    html = found._repr_html_()
    assert found.page.as_uri() in html
    assert html.count("<img") == 3
    assert unconv.report(network, tensors(folder), tmp_path / "run", **settings).rows == found.rows
    with pytest.raises(unconv.UnconvError, match="other settings"):
        unconv.report(network, tensors(folder) / 2, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: unconv.invert(net, "9", x), "no stage '9'.*0, 3, 6"),
        (lambda net, x: unconv.invert(net, "0", x, method="magic"), "no method 'magic'"),
        (lambda net, x: unconv.invert(net, "0", x, effort=0), "^effort is 0"),
        (
            lambda net, x: unconv.invert(net, "0", x, side_info="switch"),
            "^side_info is 'switch'; use none, switches or g",
        ),
        (lambda net, x: unconv.invert(net, "0", x, start="pixels"), "^start is 'pixels'; use layer or image$"),
        (lambda net, x: unconv.invert(net, "0", x, code="papers"), "^code is 'papers'; use network or paper$"),
        (lambda net, x: unconv.invert(net, "0", x, start="layer", method="gradient"), "; use start image code network"),
        (lambda net, x: unconv.invert(net, "0", x, prior_weight=1.0), "^prior_weight is that of prior l1"),
        (lambda net, x: unconv.invert(net, "0", x[0]), r"shape \(3, 16, 16\); give a batch \(N, C, H, W\)"),
        (lambda net, x: unconv.invert(net, "0", []), "images is empty"),
        (lambda net, x: unconv.invert(net, "0", [x[0], "a.png"]), "image-0001 is a str"),
        (lambda net, x: unconv.invert(net, "0", x, weights="w.pth"), "this network has its own"),
        (lambda net, x: unconv.invert(net, "0", x, batch=0), "at least 1"),
        (lambda net, x: unconv.invert(3, "0", x), "model is of type int; give an nn.Module"),
        (lambda net, x: unconv.invert("tiny_networks:vgg", "0", x, preprocess=abs), "brings its own preprocess"),
        (lambda net, x: unconv.report(net, x, samples=0), "^region and samples are at least 1"),
    ],
)
def test_errors_speak_python(network, folder, call, message):
    with pytest.raises(unconv.UsageError, match=message):
        call(network, tensors(folder))


def test_a_report_of_images_without_colours_or_grey_is_refused(tmp_path):
    net = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU())
    with pytest.raises(unconv.UnconvError, match="one or three channels"):
        unconv.report(net, torch.rand(1, 5, 8, 8), tmp_path / "run")
    assert not (tmp_path / "run").exists()
