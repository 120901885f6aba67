"""``unconv doctor``: whether the installation works; versions, devices, and a tiny inversion on each of them."""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

from unconv.options import Doctor

LAYER = "features.3"
LARGEST_ERROR = 0.1  # of the image from LAYER; 0.004 is usual
OPTIONAL = ("ray", "timm", "pylops", "deepinv")


def run(options: Doctor) -> tuple[dict[str, Any], str]:
    """Check the installation part by part; return the JSON document and its text, ``ok`` where everything works."""
    devices: list[dict[str, str]] = []
    packages = {name: _version(name) for name in required_packages()}
    checks = [_check("packages", lambda: _all_there(packages)), _check("torch", lambda: _find_devices(devices))]
    checks += [_check(f"inversion on {one['device']}", partial(_invert, one["device"])) for one in devices]
    document: dict[str, Any] = {
        "ok": all(check["ok"] for check in checks),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "optional": {name: _version(name) for name in OPTIONAL},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": devices,
        "checks": checks,
    }
    return document, _text(document)


def required_packages() -> list[str]:
    """Return the packages that an installation needs, the optional ones left out."""
    try:
        stated = metadata.requires("unconv") or []
    except metadata.PackageNotFoundError:
        stated = []
    return ["unconv", *sorted(re.split(r"[^\w.-]", line)[0].lower() for line in stated if "extra ==" not in line)]


def _check(name: str, look: Callable[[], str]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        ok, message = True, look()
    except Exception as error:  # whatever is broken here is what the user wants to know
        ok, message = False, " ".join(f"{type(error).__name__}: {error}".split())
    return {"check": name, "ok": ok, "message": message, "seconds": time.perf_counter() - start}


def _version(name: str) -> str | None:
    return next((found.version for found in metadata.distributions(name=name)), None)


def _all_there(packages: dict[str, str | None]) -> str:
    absent = [name for name, version in packages.items() if version is None]
    if absent:
        raise RuntimeError(f"not installed: {', '.join(absent)}; run: pip install {' '.join(absent)}")
    return f"{len(packages)} packages"


def _find_devices(devices: list[dict[str, str]]) -> str:
    torch = importlib.import_module("torch")
    devices.append({"device": "cpu", "name": platform.processor() or platform.machine()})
    for i in range(torch.cuda.device_count()):
        devices.append({"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i)})
    built = torch.version.cuda or torch.version.hip
    unused = f"; built for GPUs ({built}), but finds none here" if built and not torch.cuda.is_available() else ""
    return f"{torch.__version__} on {len(devices)} device(s), {torch.get_num_threads()} threads{unused}"


def _invert(device: str) -> str:
    from unconv.api_invert import invert

    result = invert("cifar-vgg", LAYER, size=32, limit=1, device=device)
    error, seconds = result.relative_error.item(), result.seconds.item()
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"relative error {error:.3f} from {LAYER}; it should be below {LARGEST_ERROR}")
    return f"a photograph from {LAYER} of the bundled network: relative error {error:.3f} in {seconds:.2f} s"


def _text(document: dict[str, Any]) -> str:
    versions = document["packages"] | document["optional"]
    checks = document["checks"]
    failed = [check["check"] for check in checks if not check["ok"]]
    return "\n".join([
        f"python {document['python']} on {document['platform']}, {document['cpus']} CPUs",
        *(f"{device['device']}: {device['name']}" for device in document["devices"]),
        ", ".join(f"{name} {version or 'absent'}" for name, version in versions.items()),
        "",
        *(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['check']}: {check['message']}" for check in checks),
        "",
        f"Does not work: {', '.join(failed)}." if failed else "Everything works. Next: unconv report cifar-vgg",
    ])
