"""A run that is killed, wherever that may be, is completed by the same command to the same results."""

import random
import shutil
import signal

import pytest
from faults import results, run

pytestmark = pytest.mark.slow  # minutes of whole runs: make test-faults
KILLS = 20


@pytest.fixture
def check_complete(undisturbed, place, words):
    def check():
        ended = run(*words, cwd=place)
        assert ended.status == 0, ended.err
        assert results(place / "run") == undisturbed.results
        assert [p for p in (place / "run").rglob(".*") if p.name != ".lock"] == []
        return ended

    return check


def test_killed_before_a_finished_file_gets_its_name(place, words, check_complete):
    for name in ("config.json", "rows-000002", "0000-000.png", "results.parquet", "report.html"):
        shutil.rmtree(place / "run", ignore_errors=True)
        assert run(*words, cwd=place, die_naming=name).status == -signal.SIGKILL
        assert not [p for p in (place / "run").rglob(f"{name}*") if not p.name.startswith(".")]
        check_complete()


def test_many_kills(place, words, undisturbed, check_complete, capsys):
    chance = random.Random(2)
    kills = {"before a change of the file system": 0, "at a random time": 0}
    seconds = undisturbed.seconds
    while sum(kills.values()) < KILLS:
        shutil.rmtree(place / "run", ignore_errors=True)
        if sum(kills.values()) % 2:
            kind, fault = "before a change of the file system", {"die_at": chance.randint(1, len(undisturbed.changes))}
        else:
            kind, fault = "at a random time", {"kill_after": chance.uniform(0, 0.9) * seconds}
        ended = run(*words, cwd=place, **fault)
        assert ended.status in {0, -signal.SIGKILL}, ended.err
        kills[kind] += ended.status == -signal.SIGKILL
        seconds = max(check_complete().seconds, 0.5)
    with capsys.disabled():
        print(f"\n{KILLS} of {KILLS} kills resumed to identical results: {kills}")
