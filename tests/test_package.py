"""The package as others get it: sdist and wheel built, installed in a clean environment, and started there."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import unconv

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel is built out of the sdist, so what the sdist lacks the wheel lacks."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """A new environment with the wheel alone. Its dependencies are those that are installed here, lent by a path: a
    second torch of several gigabytes would prove nothing about the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (wheel,) = built.glob("*.whl")
    run(*pip_for(folder), "install", "--no-deps", "--no-index", wheel, cwd=built)
    (theirs,) = folder.glob("lib/python*/site-packages")
    (theirs / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def pip_for(environment):
    return sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "--disable-pip-version-check"


def test_the_wheel_holds_types_and_weights(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "weights/cifar_vgg.safetensors", "weights/cifar_vgg.json", "reporting/template.html.j2"):
        assert f"unconv/{name}" in names
    ours = ("unconv/", f"unconv-{metadata.version('unconv')}.dist-info/")
    assert not [name for name in names if not name.startswith(ours)]


def test_the_sdist_can_be_read_and_tested(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/unconv/py.typed", "tests/test_package.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", "docs/_build"))]


def test_the_installed_copy_runs(environment, tmp_path):
    binaries = environment / "bin"
    where = run(binaries / "python", "-c", "import unconv; print(unconv.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert Path(unconv.__file__).is_relative_to(ROOT)
    assert "report" in run(binaries / "unconv", "--help", cwd=tmp_path)
    said = run(binaries / "unconv", "doctor", cwd=tmp_path)
    assert "unconv" in said
    assert "torch" in said


def test_what_the_package_needs_is_declared(environment, tmp_path):
    """``pip check`` holds the declared requirements against what is installed."""
    done = subprocess.run([*pip_for(environment), "check"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not [line for line in done.stdout.splitlines() if line.startswith("unconv ")], done.stdout
