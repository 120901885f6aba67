"""What the tests of faults share: the command that is disturbed, and its undisturbed run."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

# for malformed.py, which the fuzzer shares, and forked.py, which the tests of ranks share
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from forked import NETWORK, Server, place, server, write_images

__all__ = ["place", "server"]


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
