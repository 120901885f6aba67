"""The code in the documentation runs, and says what the text says."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_python_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    text = (DOCS / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "torch.Size([1, 3, 32, 32])" in said
    assert "there is no stage '9'; the stages are 0, 3" in said
    errors = {name: float(value) for name, value in re.findall(r"^(none|switches|gates) (\S+)$", said, re.MULTILINE)}
    assert errors["gates"] < errors["none"] < 1
    assert (tmp_path / "my-report" / "report.html").is_file()


def test_pages_are_linked_from_the_index():
    index = (DOCS / "README.md").read_text()
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert "python.md" in linked
    assert all((DOCS / name).is_file() for name in linked)
