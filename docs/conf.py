"""Sphinx builds the site from the pages of this folder, the scripts in ``gallery`` and the docstrings.

``make docs`` does it, and fails on a warning, a failing example, a doctest that says something else, or a link inside
the site that leads nowhere. Nothing outside the repository is asked.
"""

from __future__ import annotations

import os
import re
import warnings
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
# pages at the root of the repository, by the name that they get on the site
ROOT_PAGES = {name: name.lower() for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}

os.environ.setdefault("TQDM_DISABLE", "1")  # bars of progress are no output worth keeping
warnings.filterwarnings("ignore", message=".*non-interactive.*")

project = "unconv"
copyright = "the authors of unconv, MIT licence"
release = metadata.version("unconv")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
exclude_patterns = ["_build", "README.md", "gallery"]
nitpicky = False  # torch's own names cannot be looked up without a network

myst_heading_anchors = 4
smartquotes = False  # which would make a dash of the two hyphens of an option

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "both"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
doctest_global_setup = "import torch\ntorch.set_num_threads(1)"
doctest_test_doctest_blocks = "default"

html_theme = "furo"
html_title = f"unconv {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["examples"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "plot_gallery": "True",
    "image_srcset": ["2x"],
    "remove_config_comments": True,
    "reset_modules": (),
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib\..*",
}


def bring_in_root_pages(app: Sphinx) -> None:
    """Copy the pages at the root of the repository into ``project/``, their links turned to the site's."""
    folder = HERE / "project"
    folder.mkdir(exist_ok=True)
    for name, page in ROOT_PAGES.items():
        text = re.sub(r"\]\(docs/([^)]*)\)", r"](../\1)", (ROOT / name).read_text(encoding="utf-8"))
        text = text.replace("](../README.md)", "](../index.md)")
        for other, its_page in ROOT_PAGES.items():
            text = text.replace(f"]({other})", f"]({its_page})")
        target = folder / page
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def turn_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to the pages at the root of the repository lead to their copies on the site, in place.

    The pages are written to be read in the repository too, where those links are right as they stand.
    """
    if page.startswith("project/"):
        return
    for name, its_page in ROOT_PAGES.items():
        source[0] = source[0].replace(f"](../{name}", f"](project/{its_page}")
    source[0] = source[0].replace("](../README.md", "](index.md")


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("builder-inited", bring_in_root_pages)
    app.connect("source-read", turn_links)
