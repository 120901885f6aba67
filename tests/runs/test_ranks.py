"""Several ranks end in the bytes of one process, and what a dead one leaves is named and completed."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unconv.errors import UnconvError, UsageError
from unconv.runs import attendance, locks
from unconv.runs.directory import RunDirectory
from unconv.runs.ranks import ALONE, Rank, rank_from

REPORT = (
    "report tiny:net --images in --out run --methods transpose iht --samples 2 --effort 0.01 --batch 2 --pictures 3"
)
INVERT = "invert tiny:net --stage 3 --code paper --region 2 --method iht --images in --out run --batch 2"


@pytest.fixture
def images(place):
    """Seven images: one of another size, one broken."""
    pixels = np.random.default_rng(9).integers(0, 256, (20, 12, 3), np.uint8)
    Image.fromarray(pixels).save(place / "in" / "1a-other.png")
    (place / "in" / "2a-broken.png").write_bytes(b"no image")
    Image.fromarray(pixels[:16, ::-1]).resize((16, 16)).save(place / "in" / "4.png")
    return place


def single(server, images, command):
    """The run of one process, out of the way."""
    ended = server.run(*command.replace("--out run", "--out single").split(), "--json", cwd=images)
    assert ended.status == 0, ended.err
    return without_seconds(json.loads(ended.out)), images / "single"


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(v) for key, v in value.items() if key not in {"seconds", "run"}}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def files(run, *patterns):
    return {str(p.relative_to(run)): p.read_bytes() for pattern in patterns for p in sorted(run.glob(pattern))}


def check_equal(run, undisturbed):
    kept = ("results.parquet", "config.json", "*.png", "images/*")
    assert files(run, *kept) == files(undisturbed, *kept)
    assert {p.name for p in (run / "parts").iterdir()} == {p.name for p in (undisturbed / "parts").iterdir()}
    assert not (run / "ranks").exists()
    assert [p.name for p in run.rglob(".*")] == [".lock"]


@pytest.mark.parametrize(("command", "count"), [(REPORT, 2), (REPORT, 3), (INVERT, 3)], ids=lambda v: str(v)[:6])
def test_ranks_end_in_the_bytes_of_one_process(server, images, command, count):
    document, undisturbed = single(server, images, command)
    ended = server.run_ranks(count, *command.split(), "--json", cwd=images)
    assert [rank.status for rank in ended] == [0] * count, [rank.err for rank in ended]
    assert without_seconds(json.loads(ended[0].out)) == document
    assert [rank.out for rank in ended[1:]] == [""] * (count - 1)
    check_equal(images / "run", undisturbed)
    if command == REPORT:
        # measured seconds differ from run to run; from the same parts one process writes the same page
        page = (images / "run" / "report.html").read_bytes()
        (images / "run" / "report.html").unlink()
        assert server.run(*command.split(), cwd=images).status == 0
        assert (images / "run" / "report.html").read_bytes() == page


def test_a_killed_rank_is_named_and_only_its_share_is_made_again(server, images):
    _, undisturbed = single(server, images, REPORT)
    first, second = server.run_ranks(2, *REPORT.split(), cwd=images, faults={1: {"die_naming": "inversion-000002"}})
    assert second.status == -signal.SIGKILL
    assert first.status == 1
    assert first.message == (
        "unconv: rank 0 of 2: rank 1 of 2 has died or failed: 3 images are missing (1a-other.png, 2.png, 4.png); "
        "run the same command again, with any number of ranks, to complete them"
    )
    run = images / "run"
    made = {p.name: p.stat().st_mtime_ns for p in (run / "parts").glob("[!.]*")}
    assert {name for name in made if name.startswith("inversion")} == {
        "inversion-000000-000001.json",
        "inversion-000004-000005.json",
    }
    assert not (run / "results.parquet").exists()
    ended = server.run_ranks(3, *REPORT.split(), cwd=images)
    assert [rank.status for rank in ended] == [0, 0, 0], [rank.err for rank in ended]
    check_equal(run, undisturbed)
    again = {p.name: p.stat().st_mtime_ns for p in (run / "parts").iterdir()}
    assert {name: again[name] for name in made} == made


def test_what_a_dead_rank_has_not_counted_is_counted_in_its_place(server, images):
    _, undisturbed = single(server, images, REPORT)
    ended = server.run_ranks(3, *REPORT.split(), cwd=images, faults={0: {"die_naming": "count-000000"}})
    assert [rank.status for rank in ended] == [-signal.SIGKILL, 0, 0], [rank.err for rank in ended]
    done = {p.name for p in (images / "run" / "parts").glob("inversion*")}
    assert done == {"inversion-000002-000003.json", "inversion-000004-000005.json"}
    assert server.run(*REPORT.split(), cwd=images).status == 0
    check_equal(images / "run", undisturbed)


def test_a_rank_that_has_not_come_is_named(server, images):
    faults = {0: {"coming": 0.5}}
    (ended,) = server.run_ranks(2, *INVERT.split(), cwd=images, faults=faults, absent=1)
    assert ended.status == 1
    assert "rank 1 of 2 has not come: 3 images are missing" in ended.message


def test_a_rank_that_fails_names_itself(server, images):
    first, second = server.run_ranks(2, *REPORT.split(), cwd=images, faults={1: {"file_size": 2500}})
    assert (first.status, second.status) == (1, 1)
    assert second.message.startswith("unconv: rank 1 of 2: cannot write run: file too large; make room there")
    assert "3 images are missing (1a-other.png, 2.png, 4.png)" in second.message
    assert "rank 1 of 2 has died or failed" in first.message


def test_a_rank_that_its_launcher_ends_names_itself_and_the_dead(server, images):
    faults = {0: {"terminate_naming": "inversion-000004", "coming": 20}, 1: {"die_naming": "count-000002"}}
    first, _ = server.run_ranks(2, *REPORT.split(), cwd=images, faults=faults)
    assert first.status == 1
    assert first.message.startswith("unconv: rank 0 of 2: told to end by SIGTERM; 2 images are missing (")
    # on a busy machine it is dead before rank 0 has begun, which then never sees it
    assert re.search("rank 1 of 2 has (died or failed|not come): 3 images are missing", first.message)


def test_invert_needs_a_directory_to_meet_in(server, images):
    ended = server.run_ranks(2, *INVERT.replace("--out run", "").split(), cwd=images)
    assert {rank.status for rank in ended} == {2}
    assert ended[1].message == "unconv: several ranks meet in a run directory; name one with --out"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "RANK is set without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set without RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is '2'; expected a whole number, at least 0 and below WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number, at least 1"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "0", "WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9999"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_an_environment_that_makes_no_sense(environ, message):
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        rank_from(environ)
    assert len(str(refused.value)) < 200


def test_a_wrong_environment_is_one_line(server, images):
    ended = server.run(*REPORT.split(), cwd=images, environ={"RANK": "3", "WORLD_SIZE": "2"})
    assert ended.status == 2
    assert ended.message == "unconv: RANK is '3'; expected a whole number, at least 0 and below WORLD_SIZE, which is 2"
    assert not (images / "run").exists()


def test_the_rank_of_the_environment():
    assert rank_from({}) == rank_from({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    one, other = (rank_from({"RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": port}) for port in ("1", "2"))
    assert (one.number, one.count, one.local) == (1, 4, 1)
    assert one.job != other.job


@pytest.fixture
def open_run(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    monkeypatch.setattr(attendance, "PATIENCE", 0.1)
    opened = []

    def open_one(rank: Rank = ALONE) -> RunDirectory:
        opened.append(RunDirectory(tmp_path / "run", {"verb": "test"}, rank))
        return opened[-1]

    yield open_one
    for run in opened:
        run.close()


def test_ranks_of_one_job_share_a_directory_and_others_are_refused(open_run, tmp_path):
    runs = [open_run(Rank(number, 3, number, "0a0a0a0a")) for number in (1, 0, 2)]
    busy = r"run is being written by a job of 3 ranks 0a0a0a0a on .*; wait for it"
    for other in (ALONE, Rank(0, 3, 0, "bbbbbbbb"), Rank(0, 2, 0, "0a0a0a0a")):
        with pytest.raises(UnconvError, match=busy):
            open_run(other)
    with pytest.raises(UnconvError, match=r"run is being written by rank 1 of 3 \(process \d+\) on .*another job's"):
        open_run(Rank(1, 3, 1, "0a0a0a0a"))
    for run in runs[1:]:
        run.close()
    with pytest.raises(UnconvError, match=busy):
        open_run(Rank(0, 2, 0, "cccccccc"))
    runs[0].close()
    runs.clear()
    last = open_run()
    assert not (Path(tmp_path) / "run" / "ranks").exists()
    with pytest.raises(UnconvError, match=r"being written by process \d+ on"):
        open_run(Rank(0, 2, 0, "0a0a0a0a"))
    last.close()


def test_who_is_here(open_run):
    first, second = (open_run(Rank(number, 3, 0, "0a0a0a0a")) for number in (0, 1))
    where = first.attendance.whereabouts
    assert [where(number) for number in range(3)] == ["here", "here", "not come"]
    with first.attendance.instead_of(1) as free:
        assert not free
    second.attendance.close()
    assert where(1) == "gone"
    with first.attendance.instead_of(2) as free, second.attendance.instead_of(2) as again:
        assert (free, again) == (True, False)
    assert where(2) == "not come"
    first.attendance.leave()
