"""A run that is killed, wherever that may be, is completed by the same command to the same bytes."""

import random
import shutil
import signal
import time

import pytest


def leftovers(run):
    return [p for p in run.rglob(".*") if p.name != ".lock"]


def check_complete(ended, run, undisturbed):
    assert ended.status == 0, ended.err
    assert (run / "results.parquet").read_bytes() == undisturbed.results
    assert leftovers(run) == []


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_been(server, place, words, undisturbed):
    chance = random.Random(0)
    whole = len(undisturbed.changes)
    assert whole > 40
    # each time somewhere in what is left of the run, until it lives to its end
    deaths = 0
    for _ in range(8):
        ended = server.run(*words, cwd=place, die_at=chance.randint(5, 20))
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.err
        deaths += 1
    assert deaths >= 4
    check_complete(server.run(*words, cwd=place), place / "run", undisturbed)


def test_killed_before_a_finished_file_gets_its_name(server, place, words, undisturbed):
    run = place / "run"
    for name in (
        "config.json",
        "activity.json",
        "inversion-000002",
        "0000-01-00.png",
        "results.parquet",
        "report.html",
    ):
        if name.startswith("0000"):
            (run / "parts" / "inversion-000000-000000.json").unlink()
            (run / "images" / name).unlink()
        assert server.run(*words, cwd=place, die_naming=name).status == -signal.SIGKILL
        assert not [p for p in run.rglob(f"{name}*") if not p.name.startswith(".") and p.suffix != ".part"]
    check_complete(server.run(*words, cwd=place), run, undisturbed)


def test_killed_at_random_times(server, place, words, undisturbed):
    chance = random.Random(1)
    for _ in range(3):
        ended = server.run(*words, cwd=place, kill_after=chance.uniform(0.02, 0.3) * undisturbed.seconds)
        assert ended.status in {0, -signal.SIGKILL}, ended.err
    check_complete(server.run(*words, cwd=place), place / "run", undisturbed)


@pytest.mark.slow
def test_fifty_kills(server, place, words, undisturbed, capsys):
    chance = random.Random(2)
    kills = {"before a change of the file system": 0, "at a random time": 0}
    seconds = undisturbed.seconds
    while sum(kills.values()) < 50:
        if (place / "run").exists():
            shutil.rmtree(place / "run")
        if sum(kills.values()) % 2:
            kind, fault = "before a change of the file system", {"die_at": chance.randint(1, len(undisturbed.changes))}
        else:
            kind, fault = "at a random time", {"kill_after": chance.uniform(0, 0.9) * seconds}
        ended = server.run(*words, cwd=place, figures=True, **fault)
        assert ended.status in {0, -signal.SIGKILL}, ended.err
        kills[kind] += ended.status == -signal.SIGKILL
        start = time.perf_counter()
        check_complete(server.run(*words, cwd=place), place / "run", undisturbed)
        seconds = max(time.perf_counter() - start, 0.5)
    with capsys.disabled():
        print(f"\n50 of 50 kills resumed to identical results: {kills}")
