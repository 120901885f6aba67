"""64 images on a cluster of three nodes, one of which is killed on the way: the same results as one process."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray")
IMAGES, ROWS = 64, 2 * 64
REPORT = "report cifar-vgg --images in --size 32 --layers features.12 --side-info none --passes 8 --batch 4"


@pytest.fixture(scope="module")
def place(tmp_path_factory, smooth_pictures):
    folder = tmp_path_factory.mktemp("ray")
    smooth_pictures(folder / "in", IMAGES, (32, 32))
    return folder


@pytest.fixture(scope="module")
def alone(place):
    """What one process finds."""
    subprocess.run([sys.executable, "-m", "unconv", *REPORT.split(), "--out", "alone"], cwd=place, check=True)
    return results(place / "alone")


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 starves on a machine that is busy with other tests

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.spare = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


def results(run: Path) -> list[dict]:
    """The table of a run, without what no two runs share."""
    rows = pq.read_table(run / "results.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def private(*command: str) -> list[str]:
    """A command for which the folder ``run`` is a disk that no other process sees."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody have a mount namespace")
    line = 'mkdir run && mount -t tmpfs tmpfs run && "$@" && cp -r run kept'
    return ["unshare", "-m", "sh", "-c", line, "sh", *command]


@pytest.mark.slow
@pytest.mark.parametrize("common", [True, False], ids=["common folder", "folder of its own"])
def test_a_cluster_that_loses_a_node_finds_what_one_process_finds(place, alone, cluster, common, capsys):
    command = [sys.executable, "-m", "unconv", *REPORT.split(), "--ray", cluster.address, "--out", "run"]
    started = time.monotonic()
    driver = subprocess.Popen(command if common else private(*command), cwd=place)
    run = Path(f"/proc/{driver.pid}/root{place}/run")  # as the driver sees it
    while len(list(run.glob("parts/rows-*-00008.json"))) < 2:  # refinement is on its way
        assert driver.poll() is None
        time.sleep(0.02)
    node = cluster.spare[0]
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    done = len(list(run.glob("parts/rows-*-00008.json")))
    cluster.remove_node(node, allow_graceful=False)
    assert driver.wait(timeout=600) == 0
    assert list((place / "run").iterdir()) == [] or common
    kept = place / ("run" if common else "kept")
    found = results(kept)
    assert found == alone
    assert len(found) == ROWS
    assert (kept / "images" / "0001-001.png").is_file()
    shutil.rmtree(place / "run")
    with capsys.disabled():
        where = "a common run folder" if common else "a run folder of the driver's own"
        print(
            f"\n{len(found)} rows of {IMAGES} images equal to one process's, with {where}: a node of three was killed "
            f"after {done} of 16 blocks had been refined; {time.monotonic() - started:.0f} s"
        )
