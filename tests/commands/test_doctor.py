"""``unconv doctor``: what works is said, and what does not fails the command but not the other checks."""

from importlib import metadata

from unconv.commands.doctor import required_packages


def test_a_working_installation(call):
    found = call("doctor", "--json").document
    assert found["ok"]
    assert found["packages"]["torch"]
    assert found["devices"][0]["device"] == "cpu"
    assert [check["check"] for check in found["checks"]][:3] == ["packages", "torch", "inversion on cpu"]
    assert all(check["ok"] and check["message"] for check in found["checks"])


def test_what_does_not_work_is_named_and_the_rest_is_checked(call, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch", "no-such-package>=1", "ray; extra == 'ray'"])
    ended = call("doctor")
    assert ended.status == 1
    assert "FAIL  packages: RuntimeError: not installed: no-such-package" in ended.out
    assert "ok    inversion on cpu" in ended.out
    assert ended.out.rstrip().endswith("Does not work: packages.")


def test_required_packages_are_those_of_the_project():
    assert {"unconv", "torch", "numpy"} <= set(required_packages())
    assert "ruff" not in required_packages()
