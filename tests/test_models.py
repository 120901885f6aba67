import hashlib
import re
import sys
import types
import urllib.error
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models, transforms

import cases
from unconv import cifar_vgg
from unconv.errors import UnconvError, UsageError
from unconv.model_sources import bundled_weights
from unconv.models import adopt_model, check_covered, load_model
from unconv.preprocessing import IMAGENET_MEAN, Preprocess, UserPreprocess

SMALL = "squeezenet1_1"
MODULE = """
import torch
from torch import nn

TEXT = "no model"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.deep = nn.Conv2d(2, 2, 3)

    def forward(self, x):
        return self.deep(self.norm(self.conv(x)))


def double():
    return Net().double().train()


def with_preprocess():
    net = Net()
    net.preprocess = lambda image: torch.full((3, 9, 7), float(image.width))
    return net


def on_callable():
    return Net()


on_callable.preprocess = lambda image: torch.zeros(3, 4, 4)


def with_nan():
    net = Net()
    net.conv.bias.data[1] = float("nan")
    return net


def with_mask():
    net = Net()
    net.register_buffer("mask", torch.full((2, 2), float("-inf")))
    net.norm.running_var[1] = float("nan")
    return net


def lazy():
    return nn.LazyConv2d(3, 3)


def failing():
    raise RuntimeError("no\\nweights")


def nothing():
    return None


class factory:
    inner = staticmethod(on_callable)


ready = Net()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a user's module in it, under a name of its own for each test."""
    name = f"user_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torchvision's weights, and no way to download any."""

    def offline(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def state_of(name: str, **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {**models.get_model(name, weights=None).state_dict(), **changes}


def assert_ready(module: nn.Module) -> None:
    assert not module.training
    for tensor in module.state_dict().values():
        assert tensor.dtype in {torch.float32, torch.int64}
        assert tensor.device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in module.parameters())


# names


def test_a_file_that_is_named_like_a_model_says_how_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "ownnet.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for spec in ("ownnet", "ownnet.py"):
        with pytest.raises(
            UsageError, match=r"ownnet\.py in this folder, name its function or class too: ownnet:build"
        ):
            load_model(spec)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("vgg91", {}, r"unknown model 'vgg91' \(near: .*vgg19.*\); give cifar-vgg, a torchvision"),
        ("", {}, "unknown model ''"),
        (SMALL, {"size": 0}, "^size is 0"),
        (SMALL, {"std": (1, 1, 1)}, "mean and std belong together"),
        (SMALL, {"mean": "a", "std": "1"}, "mean is 'a'"),
        (SMALL, {"mean": "0", "std": "0"}, "std is"),
        (SMALL, {"weights": "IMAGENET1K_V9"}, r"V9 is no file and none of squeezenet1_1's weights \(IMAGENET1K_V1"),
    ],
)
def test_names_and_options_that_do_not_exist_are_wrong_usage(spec, options, message):
    with pytest.raises(UsageError, match=message):
        load_model(spec, **options)


# the bundled network


def test_the_bundled_network_comes_with_its_weights():
    loaded = load_model("cifar-vgg")
    assert_ready(loaded.module)
    assert isinstance(loaded.module, cifar_vgg.CifarVGG)
    assert loaded.missing == loaded.notes == ()
    assert loaded.weights.source == "bundled with unconv"
    assert loaded.weights.sha256 == hashlib.sha256(bundled_weights().read_bytes()).hexdigest()
    assert bundled_weights().stat().st_size <= 5_000_000
    assert loaded.preprocess == Preprocess(mean=cifar_vgg.MEAN, std=cifar_vgg.STD)
    assert loaded.example().shape == (1, 3, 32, 32)
    assert loaded.module(loaded.example()).isfinite().all()


# torchvision


def test_without_weights_the_draw_is_seeded_and_said():
    before = torch.random.get_rng_state()
    first, second = load_model(SMALL), load_model(SMALL)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_ready(first.module)
    assert first.weights == second.weights
    assert first.weights.source == "random, seed 0"
    assert first.missing == ()
    torch.testing.assert_close(first.module.state_dict(), second.module.state_dict(), rtol=0, atol=0)
    assert first.preprocess == Preprocess(224, 224, IMAGENET_MEAN, (0.229, 0.224, 0.225))
    assert first.example().shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "size", "shape"), [(SMALL, 64, 64), ("googlenet", 96, 96), ("vit_b_32", 64, 64), ("maxvit_t", None, 224)]
)
def test_networks_with_a_fixed_size_are_built_for_the_wanted_one(name, size, shape, monkeypatch):
    monkeypatch.setattr(
        nn.init, "trunc_normal_", lambda tensor, *_, **__: nn.init.zeros_(tensor)
    )  # slow, and not the point
    loaded = load_model(name, size=size)
    assert loaded.example().shape == (1, 3, shape, shape)
    assert loaded.module(loaded.example()).shape == (1, 1000)


def test_published_weights_come_from_torchs_cache(cache):
    state = state_of(SMALL, **{"features.3.squeeze.weight": torch.full((16, 64, 1, 1), torch.nan)})
    member = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    file = cache / member.url.rpartition("/")[2]
    torch.save(state, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for weights in ("IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT"):
        loaded = load_model(SMALL, weights=weights)
        assert loaded.weights.source == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
        assert loaded.weights.sha256 == sha256
        assert loaded.preprocess == Preprocess(256, 224, IMAGENET_MEAN, (0.229, 0.224, 0.225))
        assert loaded.notes[0].startswith(f"{loaded.weights.source} gives no features.3.squeeze.weight; layers that")
        # published files fill what was never published with NaN
        assert loaded.missing == ("features.3.squeeze.weight",)
        torch.testing.assert_close(loaded.module.state_dict()["classifier.1.weight"], state["classifier.1.weight"])
        assert_ready(loaded.module)


@pytest.mark.parametrize("download", [False, True])
def test_weights_that_cannot_be_had_say_how_to_give_a_file(cache, download):
    with pytest.raises(
        UnconvError, match=r"fetch https://.*/squeezenet1_1-.*\.pth by hand and give the file as weights"
    ) as caught:
        load_model(SMALL, weights="IMAGENET1K_V1", download=download)
    assert ("no network in tests" in str(caught.value)) == download
    assert list(cache.iterdir()) == []


def test_a_file_of_ones_own_keeps_the_default_preprocessing_and_says_so(tmp_path):
    save_file({k: v for k, v in state_of(SMALL).items() if k.startswith("features.0.")}, tmp_path / "w.safetensors")
    loaded = load_model(SMALL, weights=str(tmp_path / "w.safetensors"))
    assert loaded.preprocess == Preprocess(224, 224, IMAGENET_MEAN, (0.229, 0.224, 0.225))
    assert "mean 123.68,116.779,103.939 and std 1" in loaded.notes[0]
    assert loaded.missing[0] == "features.3.squeeze.weight"
    caffe = load_model(SMALL, weights=str(tmp_path / "w.safetensors"), mean="123.68,116.779,103.939", std="1", size=32)
    assert caffe.preprocess == Preprocess(32, 32, (123.68, 116.779, 103.939), scale=255.0)
    assert len(caffe.notes) == 1  # what the file does not give
    red = caffe.preprocess(Image.new("RGB", (40, 32), (255, 0, 0)))
    torch.testing.assert_close(red[:, 0, 0], torch.tensor([255 - 123.68, -116.779, -103.939]))


def test_a_network_for_other_classes_is_built_as_its_file_says(tmp_path):
    torch.manual_seed(0)
    own = models.get_model("resnet18", num_classes=7)
    torch.save({f"module.{key}": value for key, value in own.state_dict().items()}, tmp_path / "own.pth")
    loaded = load_model("resnet18", weights=str(tmp_path / "own.pth"), size=32)
    assert loaded.missing == ()
    torch.testing.assert_close(loaded.module.state_dict()["fc.weight"], own.state_dict()["fc.weight"])
    assert loaded.module(loaded.example()).shape == (1, 7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fc.weight": torch.zeros(7, 64)}, r"fc\.weight has shape .*; a resnet18 that was changed goes in as module:"),
        ({"fc.0.weight": torch.zeros(7, 512)}, r"the model has no fc\.0\.weight; .* fc\.weight; a resnet18 that was"),
    ],
)
def test_weights_of_another_network_say_how_it_goes_in(tmp_path, changed, message):
    save_file(changed, tmp_path / "own.safetensors")
    with pytest.raises(UnconvError, match=message):
        load_model("resnet18", weights=str(tmp_path / "own.safetensors"))


def test_old_key_names_of_published_files_are_known(tmp_path):
    state = {k: v for k, v in state_of("densenet121").items() if not k.endswith("num_batches_tracked")}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    loaded = load_model("densenet121", weights=str(tmp_path / "w.pth"))
    assert loaded.missing == ()
    key = "features.denseblock1.denselayer1.conv2.weight"
    torch.testing.assert_close(loaded.module.state_dict()[key], state[key], rtol=0, atol=0)


def test_a_model_that_asks_for_its_files_version_loads_without_one(tmp_path):
    save_file(state_of("mnasnet0_5"), tmp_path / "w.safetensors")
    assert load_model("mnasnet0_5", weights=str(tmp_path / "w.safetensors")).missing == ()


# a user's own


def test_a_callable_is_found_in_the_current_folder(here):
    loaded = load_model(f"{here}:double")
    assert_ready(loaded.module)
    assert loaded.weights.source == f"as {here}:double sets them"
    assert loaded.weights == load_model(f"{here}:double").weights
    assert loaded.preprocess == Preprocess()
    assert "no attribute preprocess" in loaded.notes[0]
    assert loaded.notes[0].endswith("at the image's own size are assumed; give size, mean and std as in training")
    assert "size" not in load_model(f"{here}:double", size=48).notes[0]
    stated = load_model(f"{here}:double", mean=0.5, std=0.25, size=48)
    assert stated.preprocess == Preprocess(48, 48, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert stated.notes == ()


@pytest.mark.parametrize("path", ["Net", "ready", "factory.inner"])
def test_classes_instances_and_inner_callables_do_too(here, path):
    assert type(load_model(f"{here}:{path}").module).__name__ == "Net"


def test_a_models_own_preprocess_is_used(here):
    loaded = load_model(f"{here}:with_preprocess")
    assert isinstance(loaded.preprocess, UserPreprocess)
    assert loaded.preprocess.inverse is None
    assert loaded.preprocess(Image.new("L", (5, 2))).tolist() == torch.full((3, 9, 7), 5.0).tolist()
    assert loaded.example().shape == (1, 3, 9, 7)
    assert load_model(f"{here}:on_callable").example().shape == (1, 3, 4, 4)
    stated = load_model(f"{here}:with_preprocess", mean="100", std="50")
    torch.testing.assert_close(stated.preprocess.to_pixels(torch.ones(3, 2, 2)), torch.full((3, 2, 2), 150 / 255))
    with pytest.raises(UsageError, match="leave out size"):
        load_model(f"{here}:with_preprocess", size=32)


def test_buffers_that_are_not_finite_are_refused_where_they_are_used(here):
    loaded = load_model(f"{here}:with_mask")
    check_covered(loaded, ["deep"])
    with pytest.raises(UnconvError, match=r"norm\.running_var holds NaN or infinite values; layer conv needs it"):
        check_covered(loaded, ["conv"])


def test_the_key_of_one_set_of_weights_stands_behind_the_file(here, tmp_path):
    state = {"conv.weight": torch.ones(2, 3, 3, 3)}
    torch.save({"online": state, "ema": {"conv.weight": 2 * state["conv.weight"]}}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"2 sets of weights in w\.pth fit .* online, ema; .* weights='w\.pth:online'"):
        load_model(f"{here}:Net", weights="w.pth")
    loaded = load_model(f"{here}:Net", weights="w.pth:ema")
    assert loaded.weights.source == "w.pth:ema"
    assert loaded.module.conv.weight.unique().tolist() == [2]
    with pytest.raises(UsageError, match=r"no weights of the model under 'x'; it does under online, ema"):
        load_model(f"{here}:Net", weights="w.pth:x")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("{}:", UsageError, "is not module:callable"),
        ("no_such_module_here:build", UsageError, "no module no_such_module_here in"),
        ("{}.py:build", UsageError, r"a module is named without \.py: user_\w+:build"),
        ("{}:nett", UsageError, "has no nett; it has Net"),
        ("{}:TEXT", UnconvError, "is a str; expected a callable"),
        ("{}:nothing", UnconvError, "returned a NoneType; expected an nn.Module"),
        ("{}:failing", UnconvError, r"calling user_\w+:failing failed: RuntimeError: no weights"),
        ("{}:with_nan", UnconvError, r"conv\.bias holds NaN or infinite"),
        ("{}:lazy", UnconvError, "lazy parameters"),
    ],
)
def test_what_a_callable_can_get_wrong_is_one_line(here, spec, kind, message):
    with pytest.raises(UnconvError, match=message) as caught:
        load_model(spec.format(here))
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["import not_installed_anywhere", "raise SystemExit('bye')"])
def test_a_module_that_cannot_be_imported_is_one_line(here, tmp_path, text):
    (tmp_path / f"bad_{here}.py").write_text(text)
    with pytest.raises(UnconvError, match=r"cannot import bad_.*: (ModuleNotFoundError|SystemExit): ") as caught:
        load_model(f"bad_{here}:build")
    assert type(caught.value) is UnconvError
    assert str(caught.value).isprintable()


# a network in memory


@pytest.mark.parametrize(
    "build",
    [cases.stores_activations, partial(cases.stale, "weight norm"), partial(cases.stale, "pruned")],
    ids=["stored", "weight norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_networks_that_hold_computed_tensors_are_copied(build):
    net, x, kept = build(), torch.rand(1, 3, 8, 8), []
    net.register_forward_hook(lambda module, args, y: kept.append(y))
    net(x)
    adopted = adopt_model(net)
    torch.testing.assert_close(adopted.module(x), net.eval()(x), rtol=0, atol=0)
    assert adopted.module is not net
    assert all(p.requires_grad for p in net.parameters())


def test_complex_parameters_keep_their_imaginary_part():
    net = cases.unpadded()
    net.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    parameter = adopt_model(net).module.filter
    assert parameter.dtype == torch.complex64
    assert parameter.imag.abs().min() > 0


def test_an_adopted_network_brings_its_preprocess_or_takes_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert "give preprocess, or size, mean and std as in training" in adopt_model(net).notes[0]
    net.preprocess = lambda image: torch.zeros(3, 5, 5)
    assert adopt_model(net).example().shape == (1, 3, 5, 5)
    assert adopt_model(net, preprocess=lambda image: torch.zeros(3, 6, 6)).example().shape == (1, 3, 6, 6)
    with pytest.raises(UsageError, match="mean and std belong together"):
        adopt_model(net, mean=0.5)


@pytest.mark.parametrize("own", [False, True])
def test_a_stated_normalisation_that_is_the_assumed_one_changes_nothing(own):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    if own:
        net.preprocess = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
    mean, std = (0.5, 0.25) if own else (0, 1)
    assumed, stated = adopt_model(net).preprocess, adopt_model(net, mean=mean, std=std).preprocess
    assert stated == assumed
    for channels in (2, 3, 4):
        x = torch.rand(2, channels, 5, 5)
        torch.testing.assert_close(stated.to_pixels(x), x * std + mean)


# timm


class _Timm(types.ModuleType):
    """As much of timm as is asked for."""

    def __init__(self):
        super().__init__("timm")
        self.data = types.SimpleNamespace(
            resolve_model_data_config=lambda module: {
                **{"input_size": (3, 24, 24), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
                **{"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)},
            },
            create_transform=lambda **config: transforms.ToTensor(),
        )

    def list_models(self, pattern="", pretrained=False):
        return ["tiny.a1_in1k"] if pretrained else ["tiny", "small"]

    def create_model(self, name, pretrained=False):
        assert name.startswith("tiny")
        return nn.Sequential(nn.Conv2d(3, 4, 3))


def test_timms_networks_bring_their_preprocessing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", _Timm())
    loaded = load_model("timm/tiny")
    assert loaded.preprocess == Preprocess(26, 24, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), interpolation="bicubic")
    assert loaded.example().shape == (1, 3, 24, 24)
    assert loaded.weights.source == "random, seed 0"
    save_file({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}, tmp_path / "w.safetensors")
    loaded = load_model("timm/tiny", weights=str(tmp_path / "w.safetensors"))
    assert loaded.module[0].weight.unique().tolist() == [1]
    assert load_model("timm/tiny", weights="a1_in1k", download=True).weights.source == "timm tiny.a1_in1k"
    for name, weights, kind, message in [
        ("tiny", "a1_in1k", UnconvError, "fetch their file"),
        ("tiny", "b2", UsageError, r"weights b2 is no file and no tag of tiny \(a1_in1k\)"),
        ("tinny", None, UsageError, r"timm has no model 'tinny' \(near: tiny\)"),
    ]:
        with pytest.raises(kind, match=message):
            load_model(f"timm/{name}", weights=weights)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UnconvError, match=r"timm/resnet18 needs timm, .* pip install 'unconv\[timm\]'"):
        load_model("timm/resnet18")


# missing weights


def test_only_an_analysis_that_needs_a_missing_key_is_refused(here, tmp_path):
    given = {"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.zeros(2)}
    save_file(given, tmp_path / "no_norm.safetensors")
    norm = {f"norm.{name}": torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}
    save_file({**given, **norm}, tmp_path / "no_deep.safetensors")
    no_deep = load_model(f"{here}:Net", weights="no_deep.safetensors")
    check_covered(no_deep, ["conv"])
    with pytest.raises(UnconvError, match=r"no_deep.safetensors gives no deep\.weight, which layer deep needs"):
        check_covered(no_deep, ["conv", "deep"])
    # a stage holds the batch norm behind its convolution
    no_norm = load_model(f"{here}:Net", weights="no_norm.safetensors")
    with pytest.raises(UnconvError, match=r"gives no norm\.weight, which layer conv needs"):
        check_covered(no_norm, ["conv"])
