"""Weights files, read without running any code from them, and fitted into a model."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pickle
import re
import reprlib
import stat
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from unconv.errors import UnconvError, UsageError
from unconv.images import display_name, one_line
from unconv.preprocessing import Preprocess

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
# the largest published models stay below 1 MB; a long header is millions of names to make objects of
MOST_HEADER_BYTES = 10_000_000


class WeightsMisfit(UnconvError):
    """Weights are those of another network: a name that the model does not have, or a tensor of another shape."""


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        path: The file.
        state: Names and tensors, on the CPU, unwrapped; an ``OrderedDict`` that keeps torch's ``_metadata``.
        sha256: Of the file's bytes.
        preprocessing: The preprocessing that the file itself names (the safetensors metadata key
            ``preprocessing``, the JSON of ``Preprocess.describe``), where it does.
    """

    path: Path
    state: OrderedDict[str, Tensor]
    sha256: str
    preprocessing: Preprocess | None = None


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file without running any code from it.

    Args:
        path: A ``.safetensors`` file, or a state dict saved by torch (any other suffix), bare or under the key
            ``state_dict``, ``model_state_dict`` or ``model``.

    Returns:
        What it holds. Tensors of a ``.safetensors`` file may be views of it, so it has to stay as it is while they
        are in use.

    Raises:
        UsageError: If there is no such file.
        UnconvError: If it cannot be read, is damaged, would need code to load, or holds anything but tensors.
    """
    path = Path(path)
    name = display_name(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UsageError(f"no weights file {name}; give a .safetensors, .pt or .pth file") from error
    except OSError as error:
        raise UnconvError(f"cannot read {name}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{name} is not a regular file; give a .safetensors, .pt or .pth file")
    if status.st_size == 0:
        raise UnconvError(f"{name} is empty; give a .safetensors, .pt or .pth file with weights")
    preprocessing = None
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
        if "preprocessing" in metadata:
            preprocessing = _stated_preprocessing(metadata["preprocessing"], name)
    else:
        state = _unwrap(_read_pickle(path), name)
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise UnconvError(f"{name}: {_shown(key)} is no plain tensor of real numbers; save it as one")
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnconvError(f"cannot read {name}: {error.strerror}") from error
    return WeightsFile(path, state, sha256, preprocessing)


def fit_weights(module: nn.Module, file: WeightsFile) -> tuple[str, ...]:
    """Copy weights into a model; the file may give a part of them only.

    Args:
        module: The model; changed in place.
        file: The weights. Prefixes that wrappers add to every key (``module.``, ``_orig_mod.``, ``model.``) are
            taken off where the model does not know them.

    Returns:
        Names that the file does not give, in the model's order, without the counters of batch norms.

    Raises:
        WeightsMisfit: If the file gives a key that the model does not have, or a tensor of another shape; names the
            first such key.
        UnconvError: If it gives nothing, a tensor of another type, NaN or infinite values.
    """
    name = display_name(file.path)
    target: OrderedDict[str, Tensor] = module.state_dict()  # pyright: ignore[reportAssignmentType]
    state = OrderedDict(file.state)
    metadata = getattr(file.state, "_metadata", None)
    # versions in the metadata tell torch which old names to translate; without any, the names are today's
    state._metadata = OrderedDict(target._metadata if metadata is None else metadata)  # pyright: ignore
    strip_prefixes(state, target)
    if not state:
        raise UnconvError(f"{name} holds no tensors; give a file with the model's weights")
    for key, tensor in state.items():
        if key in target:
            _check_tensor(name, key, tensor, target[key])
    try:
        result = module.load_state_dict(state, strict=False)
    except Exception as error:
        # shapes were compared above; what is left are keys that a module translates and then cannot use
        raise UnconvError(one_line(f"{name} does not fit the model: {' '.join(str(error).split())}")[:400]) from error
    if result.unexpected_keys:
        key = result.unexpected_keys[0]
        near = difflib.get_close_matches(key[:200], list(target), n=1)
        expected = near[0] if near else next(iter(target), "nothing")
        raise WeightsMisfit(f"{name}: the model has no {_shown(key)}; its keys are like {expected}")
    absent = set(result.missing_keys)
    given = module.state_dict()
    for key, tensor in given.items():
        if key not in absent and not is_finite(tensor):
            raise UnconvError(f"{name}: {_shown(key)} holds NaN or infinite values; use weights of numbers")
    # safetensors stores tied parameters once, so the second name is given too
    storages = {t.data_ptr() for key, t in given.items() if key not in absent and t.numel()}
    return tuple(
        key
        for key, tensor in given.items()
        if key in absent and not key.endswith("num_batches_tracked") and tensor.data_ptr() not in storages
    )


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors.

    Args:
        state: Names and tensors on the CPU.

    Returns:
        The hash in hexadecimal; independent of the order of the names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode("utf-8", "surrogatepass"))
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shown(key: str) -> str:
    return one_line(key if len(key) <= 80 else f"{key[:77]}...")


def _check_tensor(name: str, key: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise WeightsMisfit(
            f"{name}: {_shown(key)} has shape {tuple(found.shape)}; the model expects {tuple(expected.shape)}"
        )
    if expected.is_floating_point() and not found.is_floating_point():
        raise UnconvError(f"{name}: {_shown(key)} has type {found.dtype}; the model expects {expected.dtype}")


def strip_prefixes(state: OrderedDict[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Take off prefixes that wrappers add to every key (``module.``, ``_orig_mod.``, ``model.``).

    Args:
        state: Weights by name; changed in place.
        target: Names that the model knows, none of which is touched.
    """
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state) and not any(key in target for key in state):
            consume_prefix_in_state_dict_if_present(state, prefix)


def _read_safetensors(path: Path) -> tuple[OrderedDict[str, Tensor], Mapping[str, str]]:
    try:
        with open(path, "rb") as start:
            claimed = struct.unpack("<Q", start.read(8).ljust(8, b"\0"))[0]
        if claimed > MOST_HEADER_BYTES:
            raise ValueError(f"its header claims {claimed} bytes; at most {MOST_HEADER_BYTES} are read")
        # the library itself checks every offset against the file's length
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            return OrderedDict((key, file.get_tensor(key)) for key in keys), file.metadata() or {}
    except Exception as error:
        said = one_line(" ".join(str(error).split()))[:200]
        raise UnconvError(f"{display_name(path)} is not a readable safetensors file ({said})") from error


def _stated_preprocessing(text: str, name: str) -> Preprocess:
    try:
        description = json.loads(text)
        if not isinstance(description, dict):
            raise ValueError("expected a JSON object")
        return Preprocess.from_description(description)
    except (ValueError, RecursionError) as error:
        raise UnconvError(one_line(f"{name}: its metadata key preprocessing cannot be used: {error}")) from error


def _read_pickle(path: Path) -> Any:
    name = display_name(path)
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # not mapped into memory: mapped records are not checked against their sizes
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except UnconvError:
        raise
    except pickle.UnpicklingError as error:
        raise _needs_code(name, _cause(error)) from error
    except Exception as error:
        # torch and zipfile raise almost anything on damaged files: RuntimeError, EOFError, KeyError, struct.error, ...
        raise UnconvError(
            f"{name} is damaged or no weights file ({_cause(error)}); give a .safetensors, .pt or .pth file"
        ) from error


def _check_archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise _needs_code(name, "a TorchScript program")
    # torch.save never compresses, so this is another archive or a decompression bomb
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UnconvError(f"{name} is a compressed archive; unpack it and give the weights file inside")


def _needs_code(name: str, cause: str) -> UnconvError:
    return UnconvError(
        f"{name} holds something other than tensors ({cause}) and is refused, since loading it could run code; "
        "where you trust it, keep its tensors only: "
        "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pth')"
    )


def _cause(error: Exception) -> str:
    # torch's message is a page of advice around one line
    for pattern in (r"Unsupported global: GLOBAL (\S+)", r"unsupported GLOBAL (\S+)", r"Unpickler error:\s*(.+)"):
        match = re.search(pattern, str(error))
        if match:
            return one_line(match[1])[:200]
    said = str(error).strip().split("\n")[0]
    return one_line(f"{type(error).__name__}: {said}" if said else type(error).__name__)[:200]


def _unwrap(content: Any, name: str) -> OrderedDict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UnconvError(f"{name} holds a {type(content).__name__}; expected a state dict of names and tensors")
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            # the text of a key that is no text can be as long as it likes
            shown = _shown(key if isinstance(key, str) else reprlib.repr(key))
            raise UnconvError(f"{name}: {shown} is a {type(tensor).__name__}; expected a state dict of tensors only")
    state = OrderedDict(content)
    metadata = getattr(content, "_metadata", None)
    if isinstance(metadata, Mapping) and all(
        isinstance(k, str) and isinstance(v, Mapping) for k, v in metadata.items()
    ):
        state._metadata = OrderedDict(metadata)  # pyright: ignore[reportAttributeAccessIssue]
    return state


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinite values.

    Args:
        tensor: On the CPU.

    Returns:
        Whether all values are finite.
    """
    # numpy does not wake torch's threads for each of some hundred small tensors
    return not tensor.is_floating_point() or bool(np.isfinite(tensor.detach().float().numpy()).all())
