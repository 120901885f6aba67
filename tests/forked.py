"""Commands in forked children, and a network and images small enough for hundreds of them: see ``fork_server.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU())

def dividing():
    class Dividing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = net()[0], net()[3]

        def forward(self, x):
            return self.second(self.first(x) / x.amax((1, 2, 3), keepdim=True))

    return Dividing()

def overflowing():
    made = net()
    made[0].bias.data.zero_()
    made[0].weight.data.abs_()
    made[3].weight.data.fill_(1e38)
    return made

def pruned():
    made = net()
    made[0].weight.data[1] = 0
    made[0].bias.data.zero_()
    return made
"""


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        status: Its exit status; negative for the signal that ended it.
        out: Its stdout.
        err: Its stderr without the progress bar.
    """

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("unconv: ")]
        assert "Traceback" not in self.err
        assert "unexpected" not in line
        return line


@dataclass
class Server:
    """Commands in forked children; see ``fork_server.py``."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0

    def run(self, *words: str | Path, cwd: Path, figures: bool = False, **faults: Any) -> Ended:
        """Run one command to its end, which the faults may bring early; without figures, which take most of it."""
        (ended,) = self.run_together(*words, cwd=cwd, figures=figures, each=[faults])
        return ended

    def run_ranks(
        self, count: int, *words: str | Path, cwd: Path, faults: dict[int, Any] | None = None, absent: int | None = None
    ) -> list[Ended]:
        """Run one command as so many ranks, to the end of all; the faults are those of a rank."""
        each = []
        for number in range(count):
            environ = {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number)}
            each.append({"environ": environ} | (faults or {}).get(number, {}))
        return self.run_together(*words, cwd=cwd, each=[order for n, order in enumerate(each) if n != absent])

    def run_together(
        self, *words: str | Path, cwd: Path, each: list[dict[str, Any]], figures: bool = False
    ) -> list[Ended]:
        """Run one command several times at once, each with faults of its own."""
        assert self.process.stdin is not None
        orders = []
        for faults in each:
            self.count += 1
            out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
            order = {"words": list(map(os.fspath, words)), "cwd": str(cwd), "out": str(out), "err": str(err)}
            orders.append(order | {"figures": figures} | faults)
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, "the fork server has died"
        ended = []
        for order, status in zip(orders, json.loads(answer)["status"], strict=True):
            out, err = (Path(order[name]).read_text(errors="backslashreplace") for name in ("out", "err"))
            ended.append(Ended(status, out, err.replace("\r", "\n")))
        return ended


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    script = Path(__file__).parent / "robustness" / "fork_server.py"
    words = [sys.executable, str(script)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as process:
        yield Server(process, tmp_path_factory.mktemp("said"))
        process.kill()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with ``tiny.py`` (networks) and ``in`` (four images of 16x16)."""
    (tmp_path / "tiny.py").write_text(NETWORK)
    write_images(tmp_path / "in", 4)
    return tmp_path


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
