import argparse
import hashlib
import subprocess
import sys
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unconv.checkpoint import WeightsFile, choose_weights, fit_weights, hash_state, read_weights
from unconv.errors import UnconvError, UsageError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)


class Translating(nn.Module):
    """Reads files of its first version, in which the weight was called old, as torchvision's ViT does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:  # pyright: ignore
        if local_metadata.get("version", None) in {None, 1} and f"{prefix}old" in state_dict:
            state_dict[f"{prefix}new"] = state_dict.pop(f"{prefix}old")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def seeded(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    model = Small()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    return model


def saved(path: Path, state: Any, **metadata: str) -> Path:
    if path.suffix == ".safetensors":
        save_file(dict(state), path, metadata=metadata or None)
    else:
        torch.save(state, path)
    return path


def held(state: dict[str, Tensor], path: str = "w.pth") -> WeightsFile:
    return WeightsFile(Path(path), OrderedDict(state), "")


def fit(model: nn.Module, file: WeightsFile, key: str | None = None) -> tuple[str, ...]:
    return fit_weights(model, choose_weights(model, file, key), file.path.name)[0]


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=key)


def refusal(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnconvError) as caught:
            read_weights(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


# what fits


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin", "w.SafeTensors"])
def test_a_file_comes_back_whole(tmp_path, name):
    original, model = seeded(0), seeded(1)
    if name == "w.SafeTensors":
        saved(tmp_path / "w.safetensors", original.state_dict()).rename(tmp_path / name)
    else:
        saved(tmp_path / name, original.state_dict())
    file = read_weights(tmp_path / name)
    assert fit(model, file) == ()
    assert_same(model, original)
    assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def wrappings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """One model's weights as training scripts of all kinds save them."""
    other = {"fc.weight": torch.zeros(9, 9)}
    lightning = under("model.", state)
    return {
        "data parallel": under("module.", state),
        "net": {"net": under("module.", state), "acc": 93.1},
        "nested": {"run": {"best": {"generator": state}}},
        "parts": {part: {k.split(".")[1]: v for k, v in state.items() if k.startswith(part)} for part in PARTS},
        "list": [state],
        "lightning with a loss": {"state_dict": lightning | {"criterion.weight": torch.ones(5)}},
        "smaller ema": {"model": state, "ema": {"conv.weight": torch.ones(3, 2, 3, 3)}},
        "optimiser": {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3, 2, 3, 3)}}}},
        "discriminator": {"net_g": state, "net_d": other},
        "namespace": {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("x"), when=defaultdict(list))},
        "half": {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    }


PARTS = ("conv", "norm", "head")


@pytest.mark.parametrize("kind", wrappings({}))
def test_the_models_keys_are_found_in_what_scripts_save(tmp_path, kind):
    original, model = seeded(0), seeded(1)
    if kind == "half":
        original.half().float()
    saved(tmp_path / "w.pth", wrappings(original.state_dict())[kind])
    assert fit(model, read_weights(tmp_path / "w.pth")) == ()
    assert_same(model, original)


def double(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: 2 * tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("save", "first", "second"),
    [
        (lambda state: {"state_dict": state, "state_dict_ema": double(state)}, "state_dict", "state_dict_ema"),
        (
            lambda state: {
                "m": {"params": state, "params_ema": {k: 2 * state[k] for k in state if "running" not in k}}
            },
            *("m.params", "m.params_ema"),
        ),
        (lambda state: state | under("teacher.", double(state)), "", "teacher"),
    ],
    ids=["timm", "parameters only", "beside"],
)
def test_where_two_sets_fit_neither_is_taken_unasked(tmp_path, save, first, second):
    original, model = seeded(0), seeded(1)
    file = read_weights(saved(tmp_path / "w.pth", save(original.state_dict())))
    with pytest.raises(UsageError, match=f"2 sets of weights .* {second}; choose one with weights='.*w.pth:{first}'"):
        fit(model, file)
    for key, factor in ((first, 1), (second, 2), (f"{second}.", 2)):
        fit(model, file, key)
        torch.testing.assert_close(model.conv.weight, factor * original.conv.weight)


def test_a_foreign_head_is_left_out_and_said(tmp_path):
    state = {k: v for k, v in seeded(0).state_dict().items() if not k.startswith("head")}
    file = held({**state, "head.0.weight": torch.zeros(4, 3), "head.2.weight": torch.zeros(4, 4)})
    missing, note = fit_weights(seeded(1), choose_weights(seeded(1), file), "w.pth")
    assert missing == ("head.weight", "head.bias")
    assert note == "w.pth: left out 2 keys of other parts, as head.0.weight"


def test_a_deeper_networks_weights_do_not_pass_for_a_shallower_ones():
    deep = nn.Sequential(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))), nn.Linear(2, 2))
    shallow = nn.Sequential(nn.Sequential(*(nn.Linear(2, 2) for _ in range(2))), nn.Linear(2, 2))
    with pytest.raises(UnconvError, match=r"the model has no 0\.2\.weight"):
        fit(shallow, held(deep.state_dict()))


def test_a_prefix_that_belongs_to_the_model_stays():
    original = nn.ModuleDict({"module": seeded(0)})
    model = nn.ModuleDict({"module": seeded(1)})
    assert fit(model, held(original.state_dict())) == ()
    assert_same(model, original)


def test_a_files_versions_stay_with_its_modules(tmp_path):
    state = OrderedDict({"inner.old": torch.ones(2)})
    state._metadata = OrderedDict({"": {}, "inner": {"version": 1}})  # pyright: ignore
    saved(tmp_path / "w.pth", state)
    model = nn.ModuleDict({"inner": Translating()})
    assert fit(model, read_weights(tmp_path / "w.pth")) == ()
    assert model.state_dict()["inner.new"].tolist() == [1, 1]


def test_tied_weights_that_are_stored_once_are_not_missing():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert fit(model, held({"0.weight": torch.ones(2, 2)})) == ()


# what does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv.wieght": torch.zeros(3)}, r"w\.pth: the model has no conv\.wieght; its keys are like conv\.weight"),
        ({"conv.weight": torch.zeros(3, 2, 5, 5)}, r"conv\.weight has shape \(3, 2, 5, 5\); .* \(3, 2, 3, 3\)"),
        ({"conv.bias": torch.zeros(3, dtype=torch.int8)}, r"conv\.bias has type torch\.int8; .* torch\.float32"),
        ({"head.bias": torch.tensor([0, torch.nan])}, r"head\.bias holds NaN or infinite values"),
        ({"conv.x\n\x1b[1m": torch.zeros(1)}, r"no conv\.x\\n\\x1b\[1m; its keys"),
        ({"conv.bias": torch.zeros(3).to_sparse()}, r"conv\.bias is no plain tensor"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_first_key_that_does_not_fit_is_named(changes, message):
    with pytest.raises(UnconvError, match=message) as caught:
        fit(seeded(), held({**seeded().state_dict(), **changes}))
    assert str(caught.value).isprintable()


def test_metadata_of_strangers_are_not_trusted(tmp_path):
    state = OrderedDict(seeded().state_dict())
    state._metadata = {"": 3}  # pyright: ignore
    assert fit(seeded(1), read_weights(saved(tmp_path / "w.pth", state))) == ()


# what cannot be read


@pytest.mark.parametrize("name", ["missing.pth", "file/x.pth", "nul\0.pth", "folder"])
def test_a_file_that_does_not_exist_is_wrong_usage(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"give a \.safetensors, \.pt or \.pth file"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("cause", "save"),
    [
        ("torch.nn.modules.linear.Linear", lambda path: torch.save(nn.Linear(3, 2), path)),
        ("torch.nn.modules.linear.Linear", lambda path: torch.save({"models": [nn.Linear(3, 2)], "epoch": 3}, path)),
        (
            "numpy._core.multiarray.scalar",
            lambda path: torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "best": np.float64(91.2)}, path),
        ),
    ],
    ids=["module", "list of modules", "beside"],
)
def test_a_file_that_needs_code_is_refused_with_a_recipe_that_works_on_it(tmp_path, monkeypatch, cause, save):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert f"({cause}) and is refused" in message
    recipe = message.partition("keep its tensors only: ")[2].replace("FILE", "'w.pth'")
    subprocess.run([sys.executable, "-W", "ignore", "-c", recipe], check=True, cwd=tmp_path)
    assert fit(nn.Linear(3, 2), read_weights(tmp_path / "weights.pth")) == ()


# hashes


def test_the_hash_of_tensors_sees_names_types_shapes_and_values():
    base = {"a": torch.arange(6.0), "b": torch.zeros((), dtype=torch.int64)}
    assert hash_state(base) == hash_state(dict(reversed(base.items())))
    others = [
        {"c": base["a"], "b": base["b"]},
        {**base, "a": base["a"].reshape(2, 3)},
        {**base, "a": base["a"].double()},
        {**base, "a": base["a"] + 1},
        {**base, "a": base["a"].flip(0)},
    ]
    assert len({hash_state(state) for state in [base, *others]}) == 6
