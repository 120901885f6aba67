"""Blocks of images on a cluster of three nodes, one of which dies on the way: the same results as one process."""

import sys
import threading
import time
from pathlib import Path

import pytest

from unconv.evaluate.evaluation import Evaluation, Plan
from unconv.evaluate.linear_fit import fit_linear
from unconv.evaluate.network import open_network
from unconv.evaluate.reconstruction import Task
from unconv.evaluate.run_directory import InMemoryRun, RunDirectory

pytest.importorskip("ray")


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_finds_the_same(tmp_path, smooth_pictures):
    from ray.cluster_utils import Cluster

    from unconv.evaluate.ray import RayCluster

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cases

    (tmp_path / "in").mkdir()
    smooth_pictures(tmp_path / "in", 16)
    opened = open_network(cases.vgg(), tmp_path / "in", size=16, mean=0.5, std=0.25, batch=2)
    # a network that the workers can build: theirs is sent with it, by value
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(cases)
    fit_linear(opened.network, opened.images, opened.example(), ["2"])
    tasks = (Task("2", method="linear"), Task("2", side_info="gates"))
    plan = Plan(tasks, passes=12, rounds=True, pictures=2)
    one = Evaluation(opened.network, opened.images, plan, InMemoryRun())
    one.go()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill() -> None:
        time.sleep(3)
        cluster.remove_node(nodes[0], allow_graceful=False)

    connected = RayCluster(cluster.address)
    many = Evaluation(opened.network, opened.images, plan, RunDirectory(tmp_path / "run", {}))
    threading.Thread(target=kill, daemon=True).start()
    try:
        many.go(ray=connected)
    finally:
        connected.close()
        cluster.shutdown()
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()] for run in (one, many)]
    assert len(rows[0]) == 32
    assert rows[0] == rows[1]
    assert (tmp_path / "run" / "images" / "0001-001.png").is_file()
