"""The one loop: cheap first, in rounds, resumed from its parts, and the same whatever is done at a time."""

from dataclasses import replace

import pytest
import torch

import cases
from unconv.errors import UnconvError
from unconv.evaluate.budget import Clock
from unconv.evaluate.evaluation import Evaluation, Plan, summarise
from unconv.evaluate.linear_fit import fit_linear
from unconv.evaluate.network import CapturedStream, open_network
from unconv.evaluate.reconstruction import Settings, Task, reconstruct
from unconv.evaluate.run_directory import InMemoryRun, RunDirectory
from unconv.images import quality
from unconv.inversion.calibration import Refinement
from unconv.inversion.gauss_newton import GaussNewtonConfig
from unconv.inversion.invert import invert_features

TASKS = (
    Task("2", method="linear"),
    Task("2", method="gauss-newton"),
    Task("2", method="gauss-newton", side_info="gates"),
    Task("0", "input", "network", "min-norm", "switches"),
    Task("8", method="gradient"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smooth_pictures):
    made = tmp_path_factory.mktemp("pictures")
    smooth_pictures(made, 3)
    (made / "broken.png").write_bytes(b"no picture")
    return made


@pytest.fixture(scope="module")
def opened(folder):
    opened = open_network(cases.vgg(), folder, size=16, mean=0.5, std=0.25, batch=2)
    fit_linear(opened.network, opened.images, opened.example(), ["2", "8"])
    return opened


def evaluation(opened, run=None, **options):
    plan = Plan(TASKS, **({"passes": 12, "rounds": True, "pictures": 1} | options))
    return Evaluation(opened.network, opened.images, plan, run or InMemoryRun())


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_rounds_begin_with_what_is_cheap():
    rounds = Plan(TASKS, passes={"2": 40, "8": 4}, rounds=True).jobs()
    assert [[job.task.method for job in jobs] for jobs in rounds] == [
        ["linear", "min-norm"],
        ["gauss-newton", "gradient"],
        ["gauss-newton"],
        *([["gauss-newton"] * 2] * 2),
    ]
    assert [[job.target for job in jobs] for jobs in rounds[2:]] == [[8], [32, 32], [40, 40]]
    # more side information begins where less of it ended its first round, and goes on from the better of the two
    refined = [job for jobs in rounds for job in jobs if job.task.layer == "2" and job.task.method == "gauss-newton"]
    none, gates = ([job for job in refined if job.task.side_info == kind] for kind in ("none", "gates"))
    assert [job.starts for job in none] == [(), (none[0],), (none[1],)]
    assert [job.starts for job in gates] == [(none[0],), (gates[0], none[1]), (gates[1], none[2])]
    # no passes, no refinement
    assert len(Plan(TASKS, passes={"2": 0, "8": 0}, rounds=True).jobs()) == 1


def check_order(groups):
    """A job begins from what an earlier group has finished, or from a task that knows less in its own."""
    finished = []
    for group in groups:
        assert all(job.starts[0] in finished for job in group if job.starts)
        assert all(set(job.starts) <= {*finished, *group[:place]} for place, job in enumerate(group))
        finished += group


def test_rounds_go_by_passes_whatever_those_are_that_a_layer_begins_with():
    tasks = tuple(Task(layer, side_info=kind) for layer in ("2", "8") for kind in ("none", "gates"))
    # at layer 8 the first passes lose: without side information up to 31 of them, with gates up to 11
    curves = {kind: (0.5, 0.5, *[0.6] * most, 0.4) for kind, most in (("none", 29), ("gates", 9))}
    plan = Plan(tasks, passes=150, rounds=True, refinements={"8": Refinement(1.0, curves)})
    assert [plan.targets(task) for task in tasks] == [[8, 32, 128, 150]] * 2 + [[32, 128, 150]] * 2
    jobs = [job for group in plan.jobs() for job in group]
    assert [job.target for job in jobs] == [8, 8, 32, 32, 32, 32, 128, 128, 128, 128, 150, 150, 150, 150]
    check_order(plan.jobs())
    # known switches gain nothing, so their estimate is that of no side information at the end, where gates begin
    tasks = tuple(Task("2", side_info=kind) for kind in ("none", "switches", "gates"))
    curves = {"none": (0.5, 0.5, 0.4), "switches": (0.5, 0.5, 0.6), "gates": (0.5, 0.5, 0.4)}
    plan = Plan(tasks, passes=150, rounds=True, refinements={"2": Refinement(1.0, curves)})
    assert [plan.targets(task) for task in tasks] == [[8, 32, 128, 150], [0], [8, 32, 128, 150]]
    check_order(plan.jobs())


def test_a_budget_that_ends_leaves_an_image_with_as_many_passes_for_each_kind_of_side_information(opened):
    class Counted(Clock):
        """Time for some jobs."""

        def __init__(self, seconds):
            super().__init__(1.0)
            self.seconds = seconds

        def left(self):
            return self.seconds

    ended = set()
    for seconds in range(0, 360, 30):
        clock = Counted(float(seconds))
        done = evaluation(opened, passes=40, per_pass={"2": 1.0, "8": 1e-9})
        done._compare = lambda foretold, took, clock=clock: setattr(clock, "seconds", clock.seconds - foretold)
        done.go(clock)
        passes = {}
        for row in done.rows():
            if row["layer"] == "2" and row["method"] == "gauss-newton":
                passes.setdefault(row["image"], {})[row["side_info"]] = row["passes"]
        made = [kinds for kinds in passes.values() if len(kinds) == 2]
        assert all(kinds["none"] == kinds["gates"] for kinds in made), passes
        ended |= {kinds["none"] for kinds in made}
    assert ended == {8, 32, 40}


def test_no_more_passes_are_made_than_pay():
    falls, rises = (0.5, 0.5, 0.4, 0.3, 0.2, 0.3), (0.5, 0.5, 0.6)
    for errors, last in ({"none": falls, "gates": rises}, 4), ({"none": rises, "gates": falls}, 0):
        plan = Plan(TASKS[1:3], passes=40, rounds=True, refinements={"2": Refinement(1.0, errors)})
        rounds = plan.jobs()
        assert [[job.target for job in jobs] for jobs in rounds] == [[last], [4 - last]]
        assert plan.limit(TASKS[1]) == last
        # where more side information gains nothing it ends where less of it did
        assert rounds[1][0].starts == (rounds[0][0],)


def test_rows_hold_what_is_measured(opened):
    done = evaluation(opened, keep=True)
    pages = []
    done.go(publish=lambda: pages.append(len(list(done.rows()))))
    assert pages == [6, 12, 15, 15, 15]
    rows = list(done.rows())
    assert [(row["image"], row["method"]) for row in rows[:5]] == [(0, task.method) for task in TASKS]
    assert [s.file for s in done.skipped()] == ["broken.png"]
    x = {i: x for batch in opened.images for i, x in zip(batch.indices, batch.inputs, strict=True)}
    estimates = {image: (estimate, reference) for image, estimate, reference in done.tensors(0)}
    for row in rows:
        assert row["relative_error"] is not None, row["status"]
        assert (row["expected_error"] is not None) == (row["method"] == "linear")
        if row["method"] == "linear":
            assert 0.2 < row["expected_error"] / row["relative_error"] < 5
            assert (row["error_map"] is not None) == (row["picture"] is not None)
            estimate, reference = estimates[row["image"]]
            assert torch.equal(reference, x[row["image"]])
            assert row["relative_error"] == pytest.approx(((estimate - reference).norm() / reference.norm()).item())
            pixels = [opened.network.preprocess.to_pixels(y[None]).clamp(0, 1) for y in (reference, estimate)]
            assert row["psnr"] == pytest.approx(quality(*pixels)[0].item())
        if row["method"] in {"gauss-newton", "gradient"}:
            assert 0 <= row["passes"] <= 12


def test_an_interrupted_run_ends_like_an_undisturbed_one(opened, tmp_path):
    whole = evaluation(opened, RunDirectory(tmp_path / "whole", {}))
    whole.go()

    def stumble(message, units):
        stumble.calls += 1
        if stumble.calls == 5:
            raise KeyboardInterrupt

    stumble.calls = 0
    broken = evaluation(opened, RunDirectory(tmp_path / "run", {}))
    with pytest.raises(KeyboardInterrupt):
        broken.go(progress=stumble)
    broken.go()
    assert without_time(broken.rows()) == without_time(whole.rows())
    names = [sorted(p.name for p in (tmp_path / run / "images").iterdir()) for run in ("whole", "run")]
    assert names[0] == names[1]


def test_more_passes_go_on_and_end_like_all_at_once(opened):
    run = InMemoryRun()
    evaluation(opened, run, passes=10).go()
    more = evaluation(opened, run, passes=20)
    more.go()
    once = evaluation(opened, passes=20)
    once.go()
    assert without_time(more.rows()) == without_time(once.rows())


def test_an_exhausted_budget_leaves_the_cheap_part(opened):
    done = evaluation(opened, per_pass={"2": 1e9, "8": 1e9})
    done.go(Clock(1000))
    assert done.stopped
    assert {row["method"] for row in done.rows()} == {"linear", "min-norm"}


def test_what_cannot_be_inverted_says_why_and_stops_nothing(opened):
    plan = Plan((Task("8", method="linear"), Task("2", method="decoder", side_info="switches")))
    done = Evaluation(opened.network, opened.images, plan, InMemoryRun())
    done.go()
    summary = summarise(done.rows(), plan.tasks)
    assert [s["failed"] for s in summary] == [0, 3]
    assert "no trained decoder" in summary[1]["note"]
    rows = [row for row in done.rows() if row["method"] == "linear"]
    assert summary[0]["relative_error"] == pytest.approx(sum(row["relative_error"] for row in rows) / 3)


def test_too_little_memory_means_fewer_images_at_a_time_and_a_failure_one(opened, capsys):
    network, asked = replace(opened.network), []

    def do(places):
        asked.append(list(places))
        if len(places) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        if 3 in places:
            raise UnconvError("it is odd")
        return list(places)

    done = list(network.in_parts(range(5), do))
    assert asked == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [2], [3], [4]]
    assert [(list(places), reason) for places, result, reason in done if result is None] == [([3], "it is odd")]
    assert [result for _, result, _ in done if result] == [[0, 1], [2], [4]]
    assert "going on with at most 2 images at a time" in capsys.readouterr().err
    assert network.max_batch == 2


def test_later_rounds_know_how_many_passes_were_made(opened):
    network = opened.network
    task, decoder = Task("2", method="gauss-newton"), network.linear["2"]
    (captured,) = list(CapturedStream(network, opened.images.block(range(2)), [], ["2"]))
    x, features = captured.batch.inputs, captured.features["2"]
    options = {"box": network.box, "decoder": decoder, "preconditioner": network.preconditioner("2", "2")}
    function = network.function("2", tuple(x.shape[1:]))
    start = invert_features(function, features, passes=12, **options).value
    found = Refinement(10.0, robust={"none": True})
    network.linear["2"] = replace(decoder, refinement=found)
    try:
        estimates = {made: reconstruct(network, captured, task, Settings(), passes=6, made=made, starts=[start])
                     for made in (0, GaussNewtonConfig().robust_after)}  # fmt: skip
    finally:
        network.linear["2"] = decoder
    for made, results in estimates.items():
        config = found.applied(GaussNewtonConfig(robust_after=0 if made else 30), "none")
        expected = invert_features(function, features, initial=start, passes=6, config=config, **options).value
        torch.testing.assert_close(torch.stack([result.estimate for result in results]), expected)
    first, later = (torch.stack([result.estimate for result in results]) for results in estimates.values())
    assert not torch.allclose(first, later)
