"""``unconv doctor``: what works is said, and what does not fails the command but not the other checks."""

import json

import pytest

from unconv.cli import main
from unconv.commands import doctor


@pytest.fixture
def call(capsys):
    def run(*words):
        status = main(["doctor", *words])
        return status, capsys.readouterr().out

    return run


def test_a_working_installation(call):
    status, out = call("--json")
    found = json.loads(out)
    assert status == 0
    assert found["ok"]
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    names = [check["check"] for check in found["checks"]]
    assert names[:6] == ["packages", "torch", "weights", "photographs", "adjoint on cpu", "inversion on cpu"]
    assert all(check["ok"] and check["said"] for check in found["checks"])


def test_what_does_not_work_is_named_and_the_rest_is_checked(call, monkeypatch):
    monkeypatch.setattr(doctor, "LARGEST_ERROR", 0.0)
    monkeypatch.setattr(doctor, "_required", lambda: ["torch", "no-such-package"])
    status, out = call()
    assert status == 1
    assert "FAIL  packages: RuntimeError: not installed: no-such-package" in out
    assert "ok    adjoint on cpu" in out
    assert "FAIL  inversion on cpu: RuntimeError: relative error 0." in out
    assert out.rstrip().endswith("Does not work: packages, inversion on cpu.")


def test_required_packages_are_those_of_the_project():
    assert {"unconv", "torch", "numpy"} <= set(doctor._required())
    assert "ruff" not in doctor._required()
