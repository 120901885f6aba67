"""What the tests of verbs share: photographs, and the command line called in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unconv.cli import main


@dataclass
class Ended:
    """A command that has ended: its exit status, stdout, and stderr without notes."""

    status: int
    out: str
    err: list[str]

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document of a command that succeeded."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The one line of an error."""
        assert self.status != 0
        assert self.out == ""
        (line,) = [line for line in self.err if line.startswith("unconv: ")]
        assert "Traceback" not in "".join(self.err)
        assert "unexpected" not in line
        return line.removeprefix("unconv: ")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory, smooth_pictures) -> Path:
    """Three small smooth pictures and one broken file."""
    folder = tmp_path_factory.mktemp("photographs")
    smooth_pictures(folder, 3)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line beside the small networks of ``cases.py``."""

    def run(*words: Any) -> Ended:
        monkeypatch.chdir(Path(__file__).parents[1])
        capsys.readouterr()
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Ended(status, printed.out, [line for line in printed.err.splitlines() if not line.startswith("note: ")])

    return run
