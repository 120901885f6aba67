"""The Python functions against the parts that they are made of."""

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

import cases
import unconv
from unconv import api
from unconv.decode.convex import convex
from unconv.evaluate.network import CapturedStream, open_network


@pytest.fixture
def network():
    return unconv.load_model("cases:vgg").module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smooth_pictures):
    """Two smooth pictures and one that cannot be read."""
    made = tmp_path_factory.mktemp("pictures")
    smooth_pictures(made, 2)
    (made / "broken.png").write_bytes(b"no picture")
    return made


def tensors(folder):
    """The pictures as a network without preprocessing receives them."""
    pictures = [np.asarray(Image.open(folder / f"{i:02d}.png")) for i in range(2)]
    return torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in pictures])


def test_linear_decoders_are_those_of_invert_and_say_what_they_miss(network, folder, tmp_path, capsys):
    batch = tensors(folder)
    decoders = unconv.linear(network, ["2", "8"], batch, seed=3)
    features = unconv.capture(network, ["2", "8"], batch)
    for name, decoder in decoders.items():
        inverted = unconv.invert(network, name, batch, method="linear", seed=3)
        estimates = decoder(features[name], batch.shape[1:])
        # invert knows that pixels are between 0 and 1
        assert torch.allclose(estimates.clamp(0, 1), torch.stack(inverted.estimates), atol=1e-5)
        assert len(decoder.explained.luminance) == len(decoder.explained.edges) - 1
        assert decoder.expected_squared_error(estimates).shape == (2, *batch.shape[2:])
    assert decoders["2"].explained.luminance_total > decoders["8"].explained.luminance_total
    # what is in a folder is taken from there, whatever the seed
    decoders["2"].save(tmp_path / "2.safetensors")
    again = unconv.linear(network, "2", batch, seed=4, decoders=tmp_path)["2"]
    assert torch.equal(again.weights.near, decoders["2"].weights.near)
    assert "see that they were not fitted to images under test" in capsys.readouterr().err
    for wrong, says in (("2.safetensors", "decoders are files"), ("nowhere", "no decoders .*nowhere")):
        with pytest.raises(unconv.UsageError, match=says):
            unconv.linear(network, "2", batch, decoders=tmp_path / wrong)
    with pytest.raises(unconv.UsageError, match="there is no layer 'nowhere'"):
        unconv.linear(network, ["2", "nowhere"], batch)
    with pytest.raises(unconv.UsageError, match="there is no argument 'passes'"):
        unconv.linear(network, "2", batch, passes=3)


IMPORTS = """
import sys, unconv
assert "torch" not in sys.modules and callable(unconv.invert)
unconv.invert("cases:vgg", "2", sys.argv[1], passes=2)
files = {m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "unconv" and m.__file__}
print(len([file for file in files if not file.endswith("__init__.py")]))
"""


def test_importing_the_package_imports_no_torch_and_inverting_few_files(folder):
    words = [sys.executable, "-c", IMPORTS, str(folder)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert int(printed.stdout) <= 40


def test_every_public_name_is_there():
    for name in unconv.__all__:
        assert getattr(unconv, name) is not None
    assert set(unconv.__all__) <= set(dir(unconv))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unconv.nothing
    assert list(inspect.signature(unconv.invert).parameters)[:3] == ["model", "layer", "images"]
    assert list(inspect.signature(unconv.report).parameters)[:2] == ["model", "images"]


def test_layers_are_listed(network):
    found = unconv.layers("cases:vgg", torch.rand(1, 3, 16, 16))
    assert found.get("2").shape == (12, 8, 8)
    assert found.get("2").block
    assert unconv.layers(network, size=16).names == found.names
    head, *rows = str(found).splitlines()
    assert head.split() == ["layer", "kind", "input", "output", "conv", "block"]
    assert rows[2].split() == ["2", "MaxPool2d", "12x16x16", "12x8x8", "yes"]
    assert any(row.startswith("conv block: a convolution with") for row in rows)


def test_random_weights_are_said(capsys):
    unconv.layers("squeezenet1_1", size=32)
    assert "note: squeezenet1_1 has random weights, since none were given" in capsys.readouterr().err


def test_an_image_from_a_layer(network, folder):
    x = tensors(folder)
    found = unconv.invert(network, "2", x, method="gauss-newton", side_info="gates", passes=60)
    assert found.estimate.shape == x.shape
    assert torch.equal(found.reference, x)
    error = (found.estimate - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert found.relative_error.tolist() == pytest.approx(error.tolist(), rel=1e-5)
    assert all(0 < passes <= 60 for passes in found.passes)
    html = found._repr_html_()
    assert html.count("<img") == 4
    assert "gauss-newton" in repr(found)
    document = found.document()
    assert document["summary"]["relative_error"] == pytest.approx(error.mean().item(), rel=1e-5)
    assert set(document["images"][0]) >= {"file", "relative_error", "psnr", "ssim", "seconds", "passes", "status"}


def test_side_information_that_does_not_exist_is_the_one_below(folder):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    found = unconv.invert(net, "1", tensors(folder), method="gradient", side_info="switches", passes=3)
    assert found.side_info == "none"
    assert "no switches" in found.notes[0]


def test_features_alone(network, folder):
    x = tensors(folder)
    features = unconv.capture(network, ["2"], x)["2"]
    found = unconv.invert(network, "2", features=features, size=16, passes=60)
    again = unconv.capture(network, ["2"], found.estimate)["2"]
    error = (again - features).flatten(1).norm(dim=1) / features.flatten(1).norm(dim=1)
    assert found.feature_error.tolist() == pytest.approx(error.tolist(), rel=1e-3)
    assert found.relative_error.isnan().all()
    assert found.references == (None, None)
    assert found._repr_html_().count("<img") == 2
    with pytest.raises(unconv.UsageError, match="give size"):
        unconv.invert(network, "2", features=features)
    with pytest.raises(unconv.UsageError, match="features have shape"):
        unconv.invert(network, "2", features=features[:, :3], size=16, method="gradient")
    for wrong in ({"method": "iht", "code": "paper"}, {"recover": "input"}, {"side_info": "gates"}):
        with pytest.raises(unconv.UsageError, match="features alone give no side information and no code"):
            unconv.invert(network, "2", features=features, size=16, **wrong)


def test_a_blocks_input_is_what_its_parts_compute(network, folder):
    x = tensors(folder)
    found = unconv.invert(network, "3", x, recover="input", side_info="switches")
    block = unconv.find_conv_blocks(network, x).get("3")
    inner = unconv.capture_inputs(network, ["3"], x)["3"]
    assert found.method == "convex"
    assert torch.equal(found.reference, inner)
    assert torch.allclose(found.estimate, convex(block, block.encode(inner)).value, atol=1e-5)
    assert found.psnr.isnan().all()
    assert "<img" not in found._repr_html_()


@pytest.mark.parametrize("method", ["convex", "min-norm"])
def test_steps_of_a_block_are_passes_and_running_out_of_them_is_said(network, folder, method):
    options = {"recover": "input", "method": method, "side_info": "switches"}
    few = unconv.invert(network, "3", tensors(folder), passes=3, **options)
    assert tuple(few.passes) == (3, 3)
    assert set(few.status) == {"max_steps"}
    more = unconv.invert(network, "3", tensors(folder), passes=1000, **options)
    assert set(more.status) == {"converged"}
    assert all(3 < passes < 1000 for passes in more.passes)


def test_without_calibration_no_gain_is_never_claimed(network, folder):
    options = {"recover": "input", "method": "convex", "side_info": "none"}
    assert "no_gain" not in unconv.invert(network, "3", tensors(folder), **options).status
    assert "no_gain" not in unconv.invert(network, "2", tensors(folder), method="gradient").status


def test_the_papers_code_measures_its_k(network, folder):
    found = [
        unconv.invert(network, "0", tensors(folder), recover="input", code="paper", side_info="switches", k=k)
        for k in (None, 10_000)
    ]
    assert found[0].method == "iht"
    assert found[0].psnr.isfinite().all()
    assert not torch.equal(found[0].estimate, found[1].estimate)


def test_files_pictures_and_tensors_are_the_same_images(network, folder):
    pictures = [Image.open(folder / f"{i:02d}.png") for i in range(2)]
    kinds = [[folder / "00.png", folder / "01.png"], pictures, tensors(folder), list(tensors(folder)), folder]
    options = {"recover": "input", "method": "min-norm", "side_info": "switches"}
    found = [unconv.invert(network, "0", images, **options) for images in kinds]
    assert found[-1].files == ("00.png", "01.png")
    assert [s.file for s in found[-1].skipped] == ["broken.png"]
    for other in found[1:]:
        assert torch.allclose(other.estimate, found[0].estimate, atol=1e-6)
        assert other.psnr.tolist() == pytest.approx(found[0].psnr.tolist(), rel=1e-4)


def test_the_callers_network_is_left_as_it_was(network, folder):
    network.train().double().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    unconv.invert(network, "2", tensors(folder), method="gradient", passes=2)
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_images_of_several_sizes_come_one_by_one(network):
    mixed = [torch.rand(3, 16, 16), torch.rand(3, 8, 12)]
    found = unconv.invert(network, "2", mixed, method="gradient", passes=2)
    assert [tuple(e.shape) for e in found.estimates] == [(3, 16, 16), (3, 8, 12)]
    with pytest.raises(unconv.UnconvError, match="use estimates"):
        _ = found.estimate


def test_a_run_directory_keeps_results_and_pictures(network, folder, tmp_path):
    options = {"method": "gradient", "passes": 3, "out": tmp_path / "run"}
    found = unconv.invert(network, "2", folder, **options)
    assert (tmp_path / "run" / "results.parquet").is_file()
    assert len(list((tmp_path / "run" / "images").glob("*-000.png"))) == 2
    again = unconv.invert(network, "2", folder, **options)
    assert again.rows == found.rows
    assert torch.equal(again.estimate, found.estimate)
    with pytest.raises(unconv.UnconvError, match="other settings"):
        unconv.invert(network, "3", folder, **options)


def test_a_report_of_a_module_and_again(network, folder, tmp_path):
    options = {"out": tmp_path / "run", "layers": ["2", "8"], "samples": 5, "passes": 10, "size": 16}
    found = unconv.report(network, folder, **options)
    assert found.page == tmp_path / "run" / "report.html"
    assert [layer["layer"] for layer in found.layers] == ["2", "8"]
    first = found.layers[0]
    methods = [(i["method"], i["side_info"]) for i in first["inversion"]]
    assert methods == [("linear", "none"), *(("gauss-newton", kind) for kind in ("none", "switches", "gates"))]
    assert first["linear"]["relative_error"] == first["inversion"][0]["relative_error"]
    assert set(first["block"]) >= {"sparsity", "coherence", "rip", "certificate"}
    assert first["block"]["certificate"]["image"]["unknowns"] == 3 * 16 * 16
    assert [s["file"] for s in found.skipped_images] == ["broken.png"]
    html = found._repr_html_()
    assert found.page.resolve().as_uri() in html
    assert html.count("<img") == 2
    assert unconv.report(network, folder, **options).rows == found.rows
    with pytest.raises(unconv.UnconvError, match="which is smaller"):
        unconv.report(network, folder, **options | {"passes": 5})
    more = unconv.report(network, folder, **options | {"passes": 20})
    assert max(row["passes"] for row in more.rows if row["passes"]) > 10


def test_without_time_for_theory_a_report_says_so_and_a_larger_budget_goes_on(network, folder, tmp_path, monkeypatch):
    options = {"layers": ["2", "8"], "size": 16, "samples": 50, "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr("unconv.evaluate.report_run.THEORY_SHARE", 0.0)
        report = unconv.report(network, folder, budget=60, **options)
    assert [layer["block"]["sparsity"] for layer in report.layers] == [None, None]
    assert [layer["block"]["certificate"] for layer in report.layers] == [None, None]
    assert "no time for the theory of 0, 6; a larger budget goes on with that" in report.document["notes"]
    again = unconv.report(network, folder, budget=61, **options)
    assert all(layer["block"]["sparsity"] for layer in again.layers)
    assert not any("theory" in note for note in again.document["notes"])


def test_a_report_ends_within_its_budget(network, folder, tmp_path):
    found = unconv.report(network, folder, out=tmp_path / "run", layers=["2"], budget=60, size=16, samples=5)
    assert found.rows
    assert found.layers[0]["linear"] is not None
    # there was time for all passes that a budget buys, and the run says how many these are
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["passes"] == {"2": config["most_passes"]} == {"2": 150}
    with pytest.raises(unconv.UnconvError, match=r"budget of .* is too small.* need about"):
        unconv.report(network, folder, out=tmp_path / "small", layers=["2"], budget=1e-3, size=16)


def test_tensors_that_look_unprepared_are_named(network, capsys):
    x = torch.rand(1, 3, 16, 16)
    x[0, 0, 0, 0] = 1
    for images, options, said in (
        (255 * x, {}, "reach 255, as pixels in 0..255 do"),
        (x, {"mean": 0.5, "std": 0.25}, "as if they were not normalised"),
        ((x - 0.5) / 0.25, {"mean": 0.5, "std": 0.25}, None),
        (255 * x, {"mean": 120, "std": 60}, None),
    ):
        open_network(network, images, **options)
        notes = capsys.readouterr().err
        assert said in notes if said else "tensors" not in notes
    with pytest.raises(unconv.UsageError, match="uint8 tensor; give what the network receives"):
        open_network(network, (255 * x).byte())
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: unconv.invert(net, "nine", x), "no layer 'nine'"),
        (lambda net, x: unconv.invert(net, net[0], x), "^layer is of type Conv2d; give the name of one layer"),
        (lambda net, x: unconv.invert("cases:nothing", "0", "nowhere"), "^no folder or file nowhere"),
        (lambda net, x: unconv.invert(net, "0", x, method="magic"), "^method is 'magic'; use one of linear"),
        (lambda net, x: unconv.invert(net, "0", x, passes=0), "^passes is 0"),
        (lambda net, x: unconv.invert(net, "0", x, side_info="switch"), "^side_info is 'switch'; use one of none"),
        (lambda net, x: unconv.report(net, x, side_info=["foo"]), "^side_info is 'foo'; use one of none"),
        (lambda net, x: unconv.invert(net, "0", x, recover="input", method="gradient"), "use one of iht"),
        (lambda net, x: unconv.invert(net, "0", x.permute(0, 2, 3, 1)), r"^the images look like \(N, H, W, C\)"),
        (lambda net, x: unconv.leakage(net, "nine", x, sigma=1), "no layer 'nine'; use one such as"),
        (lambda net, x: unconv.invert(net, "0", x, weights="w.pth"), "this network has its own"),
        (lambda net, x: unconv.invert(net, "0", x, batch=0), "at least 1"),
        (lambda net, x: unconv.invert(net, "0", x, size=8), "^size has no effect on tensors"),
        (lambda net, x: unconv.invert(net, "0", x, k=3), "^region and k have no effect on gauss-newton"),
        (lambda net, x: unconv.invert(net, "0", x, method="linear", passes=3), "no effect on linear"),
        (lambda net, x: unconv.invert(net, "0", x, recover="input", budget=3), "^a budget has no effect on convex"),
        (lambda net, x: unconv.invert(3, "0", x), "model is of type int; give an nn.Module"),
        (lambda net, x: unconv.invert("cases:vgg", "0", x, preprocess=abs), "brings its own preprocess"),
        (lambda net, x: unconv.invert(net, "0", x, effort=2), "no argument 'effort'"),
        (lambda net, x: unconv.report(net, x, samples=0), "^samples is 0"),
        (lambda net, x: unconv.layers(net, size="16"), "^size is '16'"),
        (lambda net, x: unconv.report(net, x, layers="features.2"), "^layers is the text 'features.2'; give a list"),
        (lambda net, x: api.rip(net, x, filters="own"), "^filters is 'own'"),
    ],
)
def test_errors_speak_python(network, folder, call, message):
    with pytest.raises(unconv.UsageError, match=message):
        call(network, tensors(folder))


def test_a_report_of_images_with_other_channels_than_colours(tmp_path):
    net = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten())
    report = unconv.report(net, torch.rand(1, 5, 8, 8), out=tmp_path / "run", layers=["2"], methods=["linear"])
    assert any("pictures show the first three of the 5 channels" in note for note in report.document["notes"])
    assert report.layers[0]["linear"]["relative_error"] < 1
    assert (tmp_path / "run" / "images" / "0000.png").is_file()


def test_each_image_goes_its_own_way():
    net = cases.branching().eval()
    x = torch.rand(3, 3, 8, 8) ** torch.tensor([0.3, 4, 0.5])[:, None, None, None]
    opened = open_network(net, x)
    opened.example()
    captured = torch.cat([part.features["c"] for part in CapturedStream(opened.network, opened.images, layers=["c"])])
    with torch.no_grad():
        torch.testing.assert_close(captured, torch.cat([net(image) for image in x.split(1)]))
    found = unconv.invert(net, "b", x, method="linear")
    assert [s.file for s in found.skipped] == ["image-0001"]
    assert "does not reach b" in found.skipped[0].reason


def test_an_image_on_another_path_is_not_decoded_by_the_blocks_of_the_first():
    torch.manual_seed(0)
    dark, bright = torch.rand(3, 8, 8) * 0.2, torch.rand(3, 8, 8) * 0.2 + 0.5
    found = unconv.invert(cases.branching().eval(), "c", [dark, bright], method="transpose")
    assert found.relative_error[0].isfinite()
    assert "another path" in found.status[1]
    assert found.relative_error[1].isnan()
    alone = unconv.invert(cases.branching().eval(), "c", [dark], method="transpose")
    torch.testing.assert_close(found.relative_error[0], alone.relative_error[0])


def test_an_image_that_equals_the_mean_has_no_relative_error():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    found = unconv.invert(network, "0", [torch.zeros(3, 16, 16), torch.rand(3, 16, 16)], method="transpose")
    assert found.relative_error[0].isnan()
    assert "is zero" in found.status[0]
    assert 0 < found.relative_error[1] < 1
