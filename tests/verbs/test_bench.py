"""``unconv bench`` at tiny sizes: what it writes, what it says of peers that are missing, and how it counts steps."""

import builtins
import importlib
import json
import sys

import jsonschema
import pytest
import torch

from unconv.bench import buffers, peers
from unconv.bench.figure import draw
from unconv.bench.peers import Contest, fastest
from unconv.bench.subject import BenchSubject
from unconv.bench.timing import paired_seconds, ratio_row, spread
from unconv.cli import main
from unconv.invert.surgery import Features

NUMBER = {"type": "number"}
SPREAD = {
    "type": "object",
    "required": ["median", "q1", "q3", "min", "max"],
    "additionalProperties": NUMBER | {"exclusiveMinimum": 0},
}
ROW = {
    "type": "object",
    "required": ["kind", "group", "setting", "ratio"],
    "properties": {
        "kind": {"enum": ["floor", "peer"]},
        "ratio": {"anyOf": [SPREAD, {"type": "null"}]},
        "profile": {"type": "array", "items": {"required": ["operation", "percent", "calls"]}},
    },
    "oneOf": [
        {"properties": {"kind": {"const": "floor"}, "ratio": SPREAD}, "required": ["bare", "ours_seconds", "met"]},
        {"properties": {"kind": {"const": "peer"}}, "required": ["peer", "method", "ours", "error", "reached"]},
    ],
}
SCHEMA = {
    "type": "object",
    "required": ["command", "subject", "paired_runs", "rows", "targets", "missing", "peers", "environment"],
    "properties": {
        "rows": {"type": "array", "items": ROW},
        "targets": {"type": "array", "items": {"required": ["group", "setting", "measured", "met"]}},
        "missing": {"type": "array", "items": {"required": ["peer", "reason", "install"]}},
        "environment": {"required": ["python", "packages", "cpus", "threads"]},
    },
}


@pytest.fixture
def call(capsys, tmp_path):
    def run(*words):
        status = main(["bench", "--size", "16", "--runs", "1", "--out", str(tmp_path / "out"), *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def no_pylops(monkeypatch):
    """An environment without PyLops."""
    found = importlib.import_module

    def absent(name, *rest):
        if name.startswith("pylops"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="pylops")
        return found(name, *rest)

    monkeypatch.setattr(peers.importlib, "import_module", absent)


def test_floors_and_targets_are_written(call, tmp_path):
    status, out, err = call("--only", "t-step-iht", "rip-sampling", "verbs", "--json")
    assert status == 0, err
    document = json.loads(out)
    jsonschema.validate(document, SCHEMA)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["bench.json", "bench.svg"]
    assert "<svg" in (tmp_path / "out" / "bench.svg").read_text()
    assert {row["group"] for row in document["rows"]} == {"t-step-iht", "rip-sampling", "coherence", "sparsity"}
    aims = [row for row in document["rows"] if row["met"] is not None]
    assert len(aims) == len(document["targets"]) == 4
    for row, target in zip(aims, document["targets"], strict=True):
        above, below = (row["ratio"]["median"], row["at_most"]) if row["at_most"] else (20, row["ratio"]["median"])
        assert row["met"] == target["met"] == (above <= below)
        assert ("profile" in row) == (not row["met"] and row["group"] == "t-step-iht")
    assert document["missing"] == []
    assert "--only t-step-iht rip-sampling verbs" in document["command"]
    assert str(tmp_path) not in out


def test_a_missing_peer_is_named_and_the_others_are_timed(call, no_pylops):
    pytest.importorskip("deepinv")
    status, out, err = call("--only", "layer", "--json")
    assert status == 0, err
    document = json.loads(out)
    jsonschema.validate(document, SCHEMA)
    (missing,) = document["missing"]
    assert missing["peer"] == "pylops"
    assert "No module named" in missing["reason"]
    assert missing["install"] == "pip install 'unconv[bench]'"
    assert {row["peer"] for row in document["rows"]} == {"deepinv"}
    assert document["targets"][0]["at_least"] == 2
    for row in document["rows"]:
        assert 0 < row["error"] < 1


def test_the_text_names_targets_and_missing_peers(call, no_pylops):
    status, out, err = call("--only", "convex-step", "layer")
    assert status == 0, err
    assert "at most 1.25: " in out
    assert "without pylops (ModuleNotFoundError" in out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--only", "everything"), 2, "--only is 'everything'; use some of one-step-iht, "),
        (("--runs", "0"), 2, "--runs is 0"),
        (("--size", "3"), 2, "--size is 3"),
        (("--mean", "0.5"), 2, "give --weights"),
        (("--device", "moon"), 2, "moon"),
        (("--out", "/dev/null/x"), 1, "/dev/null"),
    ],
)
def test_errors_are_one_line(call, words, status, message):
    found, out, err = call(*words)
    assert (found, out) == (status, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_runs_are_paired_and_the_order_turns_around():
    made = []
    calls = {name: (lambda name=name: made.append(name)) for name in ("a", "b")}
    times = paired_seconds(calls, 3, torch.device("cpu"))
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    order = [name for name, before in zip(made, [None, *made], strict=False) if name != before]
    assert order[-6:] in (list("abbaab"), list("ababab")) or order[-4:] == list("abab")
    row = ratio_row({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}, "a", "b")
    assert row["ratio"] == {"median": 3.0, "q1": 2.5, "q3": 3.5, "min": 2.0, "max": 4.0}
    assert spread([1.0])["q3"] == 1.0


def _contest(errors, limit=64):
    return Contest("g", "s", lambda x: x.item(), lambda n: torch.tensor(errors(n)), "ours", limit, 2.0)


def test_both_make_the_fewest_steps_to_the_peers_best_error():
    contest = _contest(lambda n: 1 / n)
    row = contest.against("peer", "m", lambda n: torch.tensor(max(0.5, 1.5 - n / 10)), 32, 1, torch.device("cpu"))
    assert row["error"] == pytest.approx(0.525)
    assert row["steps"] == {"ours": 2, "peer": 10}
    assert row["ratio"]["median"] > 0


def test_an_error_that_ours_does_not_reach_is_a_loss():
    contest = _contest(lambda n: 0.9)
    row = contest.against("peer", "m", lambda n: torch.tensor(0.1), 4, 1, torch.device("cpu"))
    assert row["ratio"] is None
    assert row["reached"] == {"ours": False, "peer": True}
    assert "0.9" in row["note"]
    assert fastest([row], 2.0)["met"] is False
    other = row | {"reached": {"ours": True, "peer": True}, "ratio": {"median": 9.0}}
    assert fastest([row, other], 2.0)["met"] is False
    assert fastest([other, other | {"ratio": {"median": 3.0}}], 2.0)["measured"] == 3.0
    assert fastest([other], None) is None


def test_the_bare_chains_are_the_jacobian_and_its_transpose():
    from unconv.bench.floors import _bare_chains
    from unconv.invert.gauss_newton import Jacobian

    subject = BenchSubject.load(16, None, None, None, None, torch.device("cpu"))
    features = Features(subject.module, subject.pool, subject.image.shape[1:])
    jacobian = Jacobian(features, subject.image)
    forward, backward = _bare_chains(subject)
    v = torch.randn(subject.image.shape)
    torch.testing.assert_close(forward(v), jacobian.forward(v), rtol=1e-4, atol=1e-5)
    w = torch.randn(jacobian.value.shape)
    torch.testing.assert_close(backward(w), jacobian.adjoint(w), rtol=1e-4, atol=1e-5)


def test_sparse_coding_by_others_solves_the_same_problem():
    pytest.importorskip("sporco")
    from unconv.bench.sparse_problem import sparse_problem

    subject = BenchSubject.load(16, None, None, None, None, torch.device("cpu"))
    rows = {row["peer"]: row for row in sparse_problem(subject, 1, ("scikit-learn", "sporco"), lambda _: None)}
    assert rows["scikit-learn"]["error"] < 1e-6
    # the 1-norm shrinks values; a wrong axis or shift would leave it near 1
    assert rows["sporco"]["error"] < 0.3


@pytest.mark.slow
def test_the_image_problem_names_what_it_was_tuned_over(monkeypatch):
    from unconv.bench import image_problem as module

    monkeypatch.setattr(module, "PATIENCE", 60.0)  # a few steps are enough
    monkeypatch.setattr(module, "LEVEL", 0.9)
    subject = BenchSubject.load(16, None, None, None, None, torch.device("cpu"))
    said = []
    rows = module.image_problem(subject, 1, (), said.append)
    assert [row["method"].split(",")[0] for row in rows] == ["Adam", "L-BFGS"] * 2
    assert len(said) == 8
    for row in rows:
        assert len(row["tuned_over"]) > 1
        assert row["reached"] == {"ours": True, "peer": True}
        assert row["ratio"]["median"] > 0


def test_a_black_image_is_no_dead_end():
    subject = BenchSubject.load(16, None, None, None, None, torch.device("cpu"))
    start = torch.zeros_like(subject.image).requires_grad_()
    features = Features(subject.module, subject.pool, subject.image.shape[1:])
    target = features(subject.image)
    (gradient,) = torch.autograd.grad((features(start) - target).square().sum(), start)
    assert (gradient != 0).float().mean() > 0.9


def test_the_figure_leaves_out_what_was_not_reached():
    ratio = {"median": 1.2, "q1": 1.1, "q3": 1.3, "min": 1.0, "max": 1.4}
    floor = {"kind": "floor", "group": "convex-step", "setting": "s", "ratio": ratio, "at_most": 1.25, "met": True}
    peer = {"kind": "peer", "group": "image", "setting": "s", "peer": "torch", "method": "Adam", "ratio": ratio}
    figure = draw([floor, peer, peer | {"ratio": None}])
    labels = [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
    assert labels == ["convex-step: s", "image: torch, Adam"]
    assert draw([]).axes


def test_the_command_starts_itself_again_with_the_variables(monkeypatch):
    started = []
    monkeypatch.setattr(buffers.os, "execve", lambda *args: started.append(args))
    monkeypatch.setattr(buffers.platform, "libc_ver", lambda: ("glibc", "2.39"))
    for name in buffers.KEPT:
        monkeypatch.delenv(name, raising=False)
    buffers.keep_buffers()  # pytest's own process
    assert started == []
    monkeypatch.setattr(sys, "argv", ["/somewhere/unconv", "bench", "--runs", "1"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "/somewhere/unconv", "bench", "--runs", "1"])
    buffers.keep_buffers()
    ((program, words, variables),) = started
    assert (program, words[1:]) == (sys.executable, ["/somewhere/unconv", "bench", "--runs", "1"])
    assert variables | buffers.KEPT == variables
    for name, value in buffers.KEPT.items():
        monkeypatch.setenv(name, value)
    buffers.keep_buffers()
    assert len(started) == 1
    assert buffers.kept()


def test_help_of_every_verb_needs_no_torch(monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *rest, **options):
        assert name.partition(".")[0] != "torch", "help imports torch"
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["bench", "--help"]) == 0
    assert "--only" in capsys.readouterr().out
