"""What the tests of faults share: the command that is disturbed, and its undisturbed run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent))  # for malformed.py, which the fuzzer shares, and faults.py

import faults


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    """The command whose run is disturbed: small, but every kind of file is written."""
    options = "--images in --out run --layers 2 4 --side-info none --passes 9 --samples 2 --batch 1 --pictures 1"
    return ("report", "tiny:net", *options.split())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with ``tiny.py`` (networks) and ``in`` (four images of 16x16)."""
    return furnished(tmp_path / "place")


def furnished(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tiny.py").write_text(faults.NETWORKS)
    (folder / "in").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{i}.png")
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing disturbs: its rows, the changes of the file system it makes, its seconds."""

    folder: Path
    results: list[dict[str, Any]]
    changes: list[tuple[str, str]]
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = furnished(tmp_path_factory.mktemp("undisturbed") / "place")
    log = folder.parent / "changes"
    ended = faults.run(*words, cwd=folder, changes=str(log))
    assert ended.status == 0, ended.err
    changes = [json.loads(line) for line in log.read_text().splitlines()]
    return Undisturbed(folder, faults.results(folder / "run"), changes, ended.seconds)
