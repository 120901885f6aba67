"""Full disks, failing reads, Ctrl-C, locks and foreign directories: one line, nothing lost, nothing elsewhere."""

import getpass
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from faults import results, run

pytestmark = pytest.mark.slow  # minutes of whole runs: make test-faults

# a full disk


def test_a_limit_on_file_size_is_one_line_and_the_run_goes_on_after_it(place, words, undisturbed):
    # below the size of the page, above that of a part and of a decoder
    ended = run(*words, cwd=place, file_size=50_000)
    assert ended.status == 1
    assert "cannot write run" in ended.message
    assert "file too large; make room there and run the same command again" in ended.message
    done = {p.name: p.stat().st_mtime_ns for p in (place / "run" / "parts").iterdir()}
    assert any(name.startswith("rows-000003-000003") for name in done)
    ended = run(*words, cwd=place)
    assert ended.status == 0, ended.err
    after = {p.name: p.stat().st_mtime_ns for p in (place / "run" / "parts").iterdir()}
    assert done.items() <= after.items()  # the page is written early, and again
    assert results(place / "run") == undisturbed.results


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB, where tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no program mount")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(place, words, undisturbed, small_disk):
    words = (*words, "--out", str(small_disk / "run"))
    filler = small_disk / "filler"
    for left in (0, 12_000, 100_000):  # the last with room for decoders and some parts
        filler.unlink(missing_ok=True)
        with filler.open("wb") as file:
            free = os.statvfs(small_disk)
            file.write(b"x" * max(free.f_bavail * free.f_frsize - left, 0))
        ended = run(*words, cwd=place)
        assert ended.status == 1, ended.err
        assert "no space left on device; make room there" in ended.message
    kept = len(list((small_disk / "run" / "parts").glob("*.json")))
    assert kept > 0
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert run(*words, cwd=place).status == 0
    assert results(small_disk / "run") == undisturbed.results


def test_a_folder_that_may_not_be_written(place, words):
    (place / "run").mkdir(mode=0o555)
    ended = run(*words, cwd=place, unprivileged=os.geteuid() == 0)
    assert ended.status == 1
    assert ended.message == (
        "unconv: cannot write run: permission denied; make it writable, or choose another directory with --out"
    )


# images that cannot be read


def test_a_read_error_skips_that_image_by_name(place, words):
    ended = run(*words, "--json", cwd=place, unreadable=["2.png"])
    assert ended.document["skipped_images"] == [{"file": "2.png", "reason": "input/output error"}]


def test_an_image_that_is_readable_again_is_taken_up_without_repetitions(place, words):
    words = (*words, "--batch", "2")
    run(*words, cwd=place, unreadable=["1.png"], die_naming="rows-000002")
    assert {p.stem[:18] for p in (place / "run" / "parts").glob("rows*.json")} == {"rows-000000-000001"}
    found = run(*words, "--json", cwd=place).document
    assert found["skipped_images"] == []
    assert {summary["images"] + summary["failed"] for summary in found["layers"][0]["inversion"]} == {4}


def test_permissions_skip_an_image_by_name(place, words):
    os.chmod(place / "in" / "1.png", 0)
    closed = place / "closed"
    closed.mkdir()
    shutil.copy(place / "in" / "0.png", closed / "0.png")
    (place / "in" / "through.png").symlink_to(closed / "0.png")
    closed.chmod(0)
    ended = run(*words, "--json", cwd=place, unprivileged=os.geteuid() == 0)
    closed.chmod(0o700)
    assert ended.document["skipped_images"] == [
        {"file": "1.png", "reason": "permission denied"},
        {"file": "through.png", "reason": "permission denied"},
    ]


# Ctrl-C


def test_an_interrupt_is_one_line_and_the_run_goes_on(place, words, undisturbed):
    ended = run(*words, cwd=place, interrupt_at=30)
    assert ended.status == 130
    assert ended.message == "unconv: interrupted; the same command goes on from what is finished"
    assert ended.out == ""
    assert not [p for p in (place / "run").rglob(".*") if p.name != ".lock"]
    assert run(*words, cwd=place).status == 0
    assert results(place / "run") == undisturbed.results


# whose directory it is


def test_the_directory_of_other_settings_or_images_is_refused_untouched(place, words, undisturbed):
    shutil.copytree(undisturbed.folder / "run", place / "run")
    (place / "run" / ".lock").unlink()
    before = tree(place / "run")
    ended = run(*words, "--seed", "1", cwd=place)
    assert ended.status == 1
    assert "run holds a run with other settings (seed was 0, now 1)" in ended.message
    (place / "in" / "3.png").unlink()
    ended = run(*words, cwd=place)
    assert ended.status == 1
    assert "other settings (images was" in ended.message
    assert {k: v for k, v in tree(place / "run").items() if k != ".lock"} == before


# nothing elsewhere


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below some, with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_written_outside_the_run_directory(place, words):
    watched = [place / name for name in ("home", "tmp", "in")]
    environ = {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "XDG_CACHE_HOME": str(place / "home" / "c")}
    for folder in watched[:2]:
        folder.mkdir()
    before = tree(*watched)
    torch_folder = Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")  # empty, made by importing torch
    ended = run(*words, cwd=place, changes=str(place.parent / "changes"), environ=environ, page=True)
    assert ended.status == 0, ended.err
    assert tree(*watched) == before
    assert {p.name for p in place.iterdir()} - {"__pycache__"} == {"run", "tiny.py", "home", "tmp", "in"}
    changed = {path for _, path in map(json.loads, (place.parent / "changes").read_text().splitlines())}
    assert changed
    outside = {path for path in changed if not Path(path).is_relative_to(place / "run")}
    assert outside <= {str(place), str(torch_folder)}
