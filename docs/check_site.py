"""Checks of the built site: links inside it lead somewhere, nothing is loaded from elsewhere, every name is explained.

``python docs/check_site.py docs/_build/html`` prints what is wrong, one line each, and exits with 1 if anything is.
Links to other sites are not followed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

REFERENCE = Path(__file__).with_name("reference")


def documented_modules() -> list[str]:
    """Return the full names of the modules that the pages of the reference name."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
    return re.findall(r"^\.\. automodule:: (\S+)\n   :members:", pages, re.MULTILINE)


def public_names() -> set[str]:
    """Return the full names of all public classes and functions of these modules, and of ``unconv.__all__``."""
    names = set()
    for module in documented_modules():
        for name, value in vars(importlib.import_module(module)).items():
            is_code = inspect.isclass(value) or inspect.isfunction(value)
            if is_code and value.__module__ == module and not name.startswith("_"):
                names.add(f"{module}.{name}")
    unconv = importlib.import_module("unconv")
    return names | {f"{getattr(unconv, name).__module__}.{name}" for name in unconv.__all__}


def names_in_reference(site: Path) -> set[str]:
    """Return the full names of what a built site explains, from its own inventory."""
    data = (site / "objects.inv").read_bytes()
    body = zlib.decompress(data.split(b"\n", 4)[4]).decode("utf-8")
    return {line.split(" ", 1)[0] for line in body.splitlines() if " py:" in line}


class _Page(HTMLParser):
    """What a page links to, and what can be linked to on it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in {"a", "link"} and "href" in values:
            self.links.append(values["href"])
        if tag in {"img", "script"} and "src" in values:
            self.links.append(values["src"])
            self.loaded.add(values["src"])
        if tag == "link" and "stylesheet" in values.get("rel", "") and "href" in values:
            self.loaded.add(values["href"])


def broken_links(site: Path) -> Iterator[str]:
    """Yield a line for each link to what the site in a folder does not have, and for what is loaded from elsewhere."""
    site = site.resolve()
    pages: dict[Path, _Page] = {}
    for file in sorted(site.rglob("*.html")):
        pages[file] = _Page()
        pages[file].feed(file.read_text(encoding="utf-8"))
    for file, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.netloc and link in page.loaded:
                yield f"{file.relative_to(site)}: {link} is loaded from elsewhere"
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{file.relative_to(site)}: {link} leads to no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{file.relative_to(site)}: {link} leads to no anchor"


def main() -> int:
    """Check the site in the folder that the command line names, and return the exit status."""
    site = Path(sys.argv[1])
    wrong = [*broken_links(site), *(f"{n} is not in the reference" for n in public_names() - names_in_reference(site))]
    print(*sorted(wrong), sep="\n", end="\n" if wrong else "")
    print(f"{len(wrong)} things are wrong with the site" if wrong else "links and names of the site: all there")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
