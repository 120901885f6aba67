"""The code in the documentation runs, and says what the text says."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs"))  # for the scripts that fill and check its pages

import check_site
import tables

DOCS = Path(check_site.__file__).parent
GALLERY = sorted((DOCS / "gallery").glob("plot_*.py"))


def test_the_python_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    text = (DOCS / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "torch.Size([1, 3, 32, 32])" in printed
    assert "there is no layer '9'" in printed
    errors = {name: float(value) for name, value in re.findall(r"^(none|switches|gates) (\S+)$", printed, re.MULTILINE)}
    assert list(errors) == ["none", "switches", "gates"]
    assert max(errors.values()) < 1
    assert (tmp_path / "my-report" / "report.html").is_file()


@pytest.mark.parametrize("name", ["benchmarks", "information", "reproduction", "theory", "unseen"])
def test_tables_are_those_of_the_results(name):
    page = (DOCS / f"{name}.md").read_text()
    assert tables.filled(page, importlib.import_module(f"fill_{name}").made) == page


def test_every_public_name_reaches_the_reference():
    """Sphinx writes a name into the reference where its module is named there and the name has a docstring."""
    names = check_site.public_names()
    assert {"unconv.recover.iht.iht", "unconv.models.load_model", "unconv.api_invert.invert"} <= names
    assert not {name.rpartition(".")[0] for name in names} - set(check_site.documented_modules())
    assert not [name for name in names if not pkgutil.resolve_name(name).__doc__]


def test_the_check_of_links_finds_what_is_broken(tmp_path):
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="#top">1</a><a href="other.html#here">2</a><a href="other.html#gone">3</a>'
        '<a href="missing.html">4</a><img src="no.png"><a href="https://example.org/never-asked">5</a>'
        '<script src="https://example.org/x.js"></script><img src="data:image/png;base64,AAAA">'
    )
    (tmp_path / "other.html").write_text('<p id="here">y</p><a href="index.html">back</a>')
    assert list(check_site.broken_links(tmp_path)) == [
        "index.html: other.html#gone leads to no anchor",
        "index.html: missing.html leads to no file",
        "index.html: no.png leads to no file",
        "index.html: https://example.org/x.js is loaded from elsewhere",
    ]


@pytest.mark.parametrize(
    "module", ["adapters", "operators", "sparsity", "block_extraction", "measure.typical", "recover.iht"]
)
def test_examples_in_docstrings_say_what_they_say(module):
    outcome = doctest.testmod(importlib.import_module(f"unconv.{module}"))
    assert outcome.attempted >= 3
    assert outcome.failed == 0


def test_every_page_is_one_of_the_site():
    index = (DOCS / "index.md").read_text()
    assert set(re.findall(r"\(examples/(\w+)\.rst\)", index)) <= {"index", *(script.stem for script in GALLERY)}
    listed = re.findall(r"^([\w-]+)$", index, re.MULTILINE)
    assert sorted(listed) == sorted({page.stem for page in DOCS.glob("*.md")} - {"README", "index"})
    assert len(GALLERY) >= 6


@pytest.mark.parametrize("script", GALLERY, ids=lambda script: script.stem)
def test_gallery_scripts_run(script, tmp_path):
    """Each in a process of its own, as ``make docs`` runs them, in a folder where it may leave what it writes."""
    environment = os.environ | {"MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
