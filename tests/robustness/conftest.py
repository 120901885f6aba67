"""What the tests of faults share: commands in forked children, and a network and images small enough for hundreds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# for malformed.py, which the fuzzer shares
sys.path.append(str(Path(__file__).parent))

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
        assert self.process.stdin is not None
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        order = {"words": list(map(os.fspath, words)), "cwd": str(cwd), "out": str(out), "err": str(err)}
        order |= {"figures": figures} | faults
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, "the fork server has died"
        status = json.loads(answer)["status"]
        said = err.read_text(errors="backslashreplace")
        return Ended(status, out.read_text(errors="backslashreplace"), said.replace("\r", "\n"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    script = Path(__file__).parent / "fork_server.py"
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


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    """The command whose run is disturbed: small, but every kind of file is written."""
    options = "--images in --out run --methods transpose min-norm --samples 2 --effort 0.01 --batch 1 --pictures 1"
    return ("report", "tiny:net", *options.split())


@pytest.fixture(scope="session")
def undisturbed(server: Server, words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run that nothing disturbs: its results, and how many changes of the file system it makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.py").write_text(NETWORK)
    write_images(folder / "in", 4)
    start = time.perf_counter()
    ended = server.run(*words, cwd=folder, changes=str(folder / "changes"), figures=True)
    seconds = time.perf_counter() - start
    assert ended.status == 0, ended.err
    changes = [json.loads(line) for line in (folder / "changes").read_text().splitlines()]
    return Undisturbed(folder, (folder / "run" / "results.parquet").read_bytes(), changes, seconds)


@dataclass(frozen=True)
class Undisturbed:
    folder: Path
    results: bytes
    changes: list[tuple[str, str]]
    seconds: float
