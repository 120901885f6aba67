"""Parts are whole or absent, other settings are refused, one writer at a time."""

import json
import subprocess
import sys

import pytest
import torch

from unconv.errors import UnconvError
from unconv.evaluate.run_directory import InMemoryRun, RunDirectory


def open_run(path, **config):
    return RunDirectory(path, {"verb": "test", "seed": 0} | config)


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_parts_and_tensors_are_kept(tmp_path, kind):
    run = open_run(tmp_path / "run") if kind == "directory" else InMemoryRun()
    calls = []
    for _ in range(2):
        assert run.part("a", lambda: calls.append(1) or {"x": [1, 2]}) == {"x": [1, 2]}
    assert calls == [1]
    assert run.has("a")
    assert not run.has("b")
    assert run.read("b") is None
    run.write_tensors("a", {"0": torch.ones(2, 3).T})
    assert torch.equal(run.read_tensors("a")["0"], torch.ones(3, 2))
    run.close()


def test_a_failed_part_leaves_nothing(tmp_path):
    run = open_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run.part("a", lambda: 1 / 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.part("a", lambda: float("nan"))
    assert not run.has("a")
    assert run.part("a", lambda: 3) == 3
    (tmp_path / "run" / "parts" / "a.json").write_text("{")  # a failing disk
    assert run.part("a", lambda: 4) == 4
    assert [p.name for p in (tmp_path / "run" / "parts").iterdir()] == ["a.json"]


def test_the_same_settings_resume_and_others_are_refused(tmp_path):
    path = tmp_path / "run"
    open_run(path, seed=2).close()
    run = open_run(path)  # nothing was computed with the other settings
    run.part("a", lambda: 1)
    run.close()
    open_run(path).close()
    with pytest.raises(UnconvError, match="seed was 0, now 1"):
        open_run(path, seed=1)
    assert json.loads((path / "config.json").read_text()) == {"verb": "test", "seed": 0}
    open_run(path).close()  # a refused directory is not held


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UnconvError, match="not empty and holds no run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnconvError, match="not readable JSON"):
        open_run(tmp_path)
    with pytest.raises(UnconvError, match=r"thesis\.tex"):
        open_run(tmp_path / "thesis.tex")


HOLDER = """
import sys
from unconv.evaluate.run_directory import RunDirectory
run = RunDirectory(sys.argv[1], {"verb": "test", "seed": 0})
print("ready", flush=True)
sys.stdin.read()
"""


def test_two_writers_are_one_too_many_and_a_dead_one_is_none(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(UnconvError, match="another process is writing"):
            open_run(tmp_path / "run")
        holder.kill()
    leftover = tmp_path / "run" / "parts" / ".a.json.1.tmp"
    leftover.touch()
    open_run(tmp_path / "run").close()
    assert not leftover.exists()
