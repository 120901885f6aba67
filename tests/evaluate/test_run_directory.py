"""Parts are whole or absent, other settings are refused, one writer at a time."""

import errno
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from unconv.errors import UnconvError
from unconv.evaluate.run_directory import RunDirectory, environment
from unconv.io import write_json


def open_run(path, **config):
    return RunDirectory(path, {"verb": "test", "seed": 0} | config)


def row(image, stage="a", error=0.5):
    return {
        "image": image,
        "file": f"{image}.jpg",
        "stage": stage,
        "from": "layer",
        "code": "network",
        "method": "min-norm",
        "side_info": "switches",
        "relative_error": error,
        "psnr": None,
        "ssim": None,
        "seconds": 0.1,
        "status": "converged",
        "picture": None,
    }


def test_parts_are_computed_once(tmp_path):
    run = open_run(tmp_path / "run")
    calls = []
    for _ in range(2):
        assert run.part("a", lambda: calls.append(1) or {"x": [1, 2]}) == {"x": [1, 2]}
    assert calls == [1]
    assert run.has("a")
    assert not run.has("b")
    run.part("a2", lambda: 5)
    assert run.parts(["a2", "b", "a"]) == [5, {"x": [1, 2]}]


def test_a_failed_part_leaves_nothing(tmp_path):
    run = open_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        run.part("a", lambda: 1 / 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.part("a", lambda: float("nan"))
    assert not run.has("a")
    assert run.part("a", lambda: 3) == 3
    assert [p.name for p in (tmp_path / "run" / "parts").iterdir()] == ["a.json"]


def test_the_same_settings_resume_and_others_are_refused(tmp_path):
    path = tmp_path / "run"
    open_run(path).close()
    open_run(path).close()
    with pytest.raises(UnconvError, match="seed was 0, now 1"):
        open_run(path, seed=1)
    assert json.loads((path / "config.json").read_text()) == {"verb": "test", "seed": 0}


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UnconvError, match="not empty and holds no run"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnconvError, match="not readable JSON"):
        open_run(tmp_path)


def test_a_path_that_is_a_file_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UnconvError, match="choose another directory"):
        open_run(file)


HOLDER = """
import sys
from pathlib import Path
from unconv.evaluate.run_directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]), {"verb": "test", "seed": 0})
print("ready", flush=True)
sys.stdin.read()
"""


def test_two_writers_are_one_too_many_and_a_dead_one_is_none(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(UnconvError, match=f"being written by process {holder.pid} on .*; wait for it"):
            open_run(tmp_path / "run")
        holder.kill()
    assert str(holder.pid) in (tmp_path / "run" / ".lock").read_text()
    open_run(tmp_path / "run").close()


def test_a_lock_that_holds_nonsense_is_still_a_lock(tmp_path):
    run = open_run(tmp_path / "run")
    (tmp_path / "run" / ".lock").write_bytes(b"\x1b[31m\xff process 1 on <b>")
    with pytest.raises(UnconvError, match="being written by another process"):
        open_run(tmp_path / "run")
    run.close()
    open_run(tmp_path / "run").close()


def test_a_refused_directory_is_not_held(tmp_path):
    open_run(tmp_path / "run").close()
    with pytest.raises(UnconvError, match="other settings") as refused:
        open_run(tmp_path / "run", seed=1)
    # the error, which is still alive here, holds no lock
    open_run(tmp_path / "run").close()
    assert refused.value.args


def test_a_lock_is_not_a_way_to_write_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UnconvError, match=r"cannot write .*symbolic links"):
        open_run(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.1234.tmp").write_text("{")
    open_run(run).close()
    halves = [".results.parquet.7.tmp", "parts/.activity.json.99.tmp", "images/.0000.png.5.tmp", ".report.html.8.tmp"]
    mine = [".notes", "images/.thumbnails", "notes.tmp", ".5.tmp", "images/0000.png"]
    for name in (*halves, *mine):
        (run / name).write_text("x")
    open_run(run).close()
    assert not any((run / name).exists() for name in (*halves, ".config.json.1234.tmp"))
    assert all((run / name).exists() for name in mine)


def test_leftovers_in_a_folder_of_others_stay(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / ".draft.12.tmp").write_text("x")
    with pytest.raises(UnconvError, match="not empty and holds no run"):
        open_run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", ".draft.12.tmp"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nul\0"])
def test_a_damaged_part_is_computed_again(tmp_path, content):
    run = open_run(tmp_path / "run")
    run.part("a", lambda: 1)
    (tmp_path / "run" / "parts" / "a.json").write_bytes(content)
    assert not run.has("a")
    assert run.part("a", lambda: 2) == 2
    assert run.parts(["a"]) == [2]


def test_a_disk_that_fails_is_said_in_one_line(tmp_path, monkeypatch):
    run = open_run(tmp_path / "run")
    run.part("a", lambda: 1)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnconvError, match=r"cannot write .*run: input/output error; make it writable, or"):
        run.part("b", lambda: 2)
    with pytest.raises(UnconvError, match=r"cannot write .*input/output error"):
        run.write_results([row(0)])
    assert run.has("a")
    assert not run.has("b")
    assert not (tmp_path / "run" / "results.parquet").exists()


def test_results_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = [row(i, stage) for i in range(3) for stage in "ba"]
    first = open_run(tmp_path / "one").write_results(rows).read_bytes()
    second = open_run(tmp_path / "two").write_results(rows[::-1]).read_bytes()
    assert first == second
    table = pq.read_table(tmp_path / "one" / "results.parquet").to_pylist()
    assert [(r["image"], r["stage"]) for r in table] == [(i, s) for i in range(3) for s in "ab"]
    assert "seconds" not in table[0]


def test_json_is_replaced_whole(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_environment_names_versions():
    found = environment()
    assert found["packages"]["torch"]
    assert found["cpus"] >= 1
