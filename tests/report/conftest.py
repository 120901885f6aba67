from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unconv.report.data import ReportData

STAGES = ("features.0", "features.3", "features.7")
WAYS = (("transpose", "switches"), ("min-norm", "switches"), ("min-norm", "gates"))
# mean over two images is the value itself: the images lie 0.02 to both sides
ERRORS = {
    ("transpose", "switches"): (0.80, 0.85, 0.90),
    ("min-norm", "switches"): (0.10, 0.20, 0.45),
    ("min-norm", "gates"): (0.05, 0.15, 0.30),
}
NAMES = ("cat.png", "dog.png")


def save_noise(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[ReportData, Path]]:
    """A report of three stages, three ways and two images, with its run directory."""

    def build(
        *, names: tuple[str, ...] = NAMES, size: tuple[int, int] = (24, 16), **changes: Any
    ) -> tuple[ReportData, Path]:
        run = tmp_path / "run"
        pictures = []
        for n, name in enumerate(names):
            save_noise(run / f"images/{n}.png", size, n)
            records = []
            for i, stage in enumerate(STAGES):
                for w, (method, side) in enumerate(WAYS):
                    path = f"images/{n}-{i}-{w}.png"
                    save_noise(run / path, size, 100 * n + 10 * i + w + 1000)
                    error = ERRORS[method, side][i] + (0.02 if n % 2 else -0.02)
                    records.append({
                        "stage": stage,
                        "from": "image",
                        "code": "network",
                        "method": method,
                        "side_info": side,
                        "path": path,
                        "relative_error": error,
                        "psnr": 30 - 20 * error,
                        "ssim": 1 - error,
                    })
            pictures.append({"file": name, "original": f"images/{n}.png", "reconstructions": records})
        data = {
            "model": "tiny-net",
            "weights": "tiny.safetensors (SHA-256 00ff)",
            "command": "unconv report tiny-net --seed 3",
            "config": {"seed": 3, "preprocessing": {"size": 24}},
            "environment": {"torch": "2.0"},
            "stages": [stage_document(i, name, len(names)) for i, name in enumerate(STAGES)],
            "skipped_modules": [{"module": "head", "reason": "a linear layer"}],
            "skipped_images": [{"file": "broken.jpg", "reason": "truncated"}],
            "pictures": pictures,
        }
        return ReportData(**(data | changes)), run

    return build


def stage_document(i: int, name: str, images: int) -> dict[str, Any]:
    return {
        "stage": name,
        "kind": "conv+relu+maxpool",
        "input_shape": [3 * (i + 1), 16, 24],
        "code_shape": [8 - i, 8, 12],
        "activation": 50.0 - i,
        "pooled": 70.0 - i,
        "coherence": {
            "learned": {"signed": 0.5 + 0.1 * i, "absolute": 0.6, "shifted": 0.7},
            "random": {"signed": 0.1, "absolute": 0.2, "shifted": 0.3},
        },
        "rip": [
            {"filters": filters, "boundary": boundary, "k": 40 + i, "p01": 0.9, "p50": 1.0, "p99": 1.1}
            for filters in ("learned", "normalised", "gaussian")
            for boundary in ("full", "cropped")
        ],
        "inversion": [
            {
                "from": "image",
                "code": "network",
                "method": method,
                "side_info": side,
                "relative_error": ERRORS[method, side][i],
                "psnr": 30 - 20 * ERRORS[method, side][i],
                "ssim": 1 - ERRORS[method, side][i],
                "seconds": 0.5,
                "images": images,
                "failed": 0,
                "note": None,
            }
            for method, side in WAYS
        ],
    }


class Browser:
    """Headless Chromium, driven over its debugging pipe."""

    def __init__(self, program: str, profile: Path) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        options += [
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        if os.geteuid() == 0:
            options.insert(0, "--no-sandbox")
        # Chromium reads from descriptor 3 and writes to 4, which may be in use in this process
        launch = (
            f"import os, sys; os.dup2({read}, 103); os.dup2({write}, 104); os.dup2(103, 3); os.dup2(104, 4); "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", launch, program, *options],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int, *, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def complaints(self) -> list[dict[str, Any]]:
        told = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [event for event in self.events if event.get("method") in told]

    def requests(self) -> list[str]:
        """Addresses that were asked for; what the page's own policy stopped never left."""
        stopped = {
            event["params"]["requestId"]
            for event in self.events
            if event.get("method") == "Network.loadingFailed" and event["params"].get("blockedReason") == "csp"
        }
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [request["request"]["url"] for request in sent if request["requestId"] not in stopped]
        return [url for url in urls if not url.startswith("data:")]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + 120
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            received = os.read(self._read, 1 << 20)
            if not received:
                raise EOFError("Chromium has gone")
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine, so the page is not tried in a browser")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()
