"""Ranks that die, whichever and whenever: any number of ranks completes what they leave to the same bytes."""

import random
import shutil
import signal

import pytest


@pytest.mark.slow
def test_random_ranks_die_at_random_moments(server, place, words, undisturbed, capsys):
    chance = random.Random(4)
    deaths = ends = 0
    while deaths < 12:
        if (place / "run").exists():
            shutil.rmtree(place / "run")
        # the same directory loses ranks again and again, until a job lives to its end
        for _ in range(6):
            count = chance.randint(1, 3)
            if chance.random() < 0.5:
                fault = {"die_at": chance.randint(1, len(undisturbed.changes) // count + 10)}
            else:
                fault = {"kill_after": chance.uniform(0, undisturbed.seconds)}
            doomed = chance.randrange(count)
            # a rank that is killed before it has come is not waited for as long as on a cluster
            faults = {number: {"coming": 5} | (fault if number == doomed else {}) for number in range(count)}
            ended = server.run_ranks(count, *words, cwd=place, faults=faults)
            died = ended[doomed].status == -signal.SIGKILL
            deaths += died
            for number, rank in enumerate(ended):
                if number != doomed or not died:
                    assert rank.status in {0, 1}, rank.err
                    if rank.status == 1:
                        assert f"rank {doomed} of {count} has " in rank.message
            if not died:
                break
        last = server.run_ranks(chance.randint(1, 3), *words, cwd=place)
        assert {rank.status for rank in last} == {0}, [rank.err for rank in last]
        assert (place / "run" / "results.parquet").read_bytes() == undisturbed.results
        assert [p for p in (place / "run").rglob(".*") if p.name != ".lock"] == []
        assert not (place / "run" / "ranks").exists()
        ends += 1
    with capsys.disabled():
        print(f"\n{deaths} deaths of ranks in {ends} runs, all of them completed to identical results")
