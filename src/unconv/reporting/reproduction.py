"""One page of reproduced tables and figures, ours beside the paper's; self-contained, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from unconv.io import replacing
from unconv.reporting import text as words
from unconv.reporting.figures import STYLE

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888; vertical-align: bottom } td:first-child, th:first-child { text-align: left }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto } code { font-size: 13px; overflow-wrap: anywhere }
nav a { margin-right: 1rem } li { margin: .2rem 0 }
</style></head><body>
<h1>{{ title }}</h1>
<p><code>{{ command }}</code></p>
<nav>{% for section in sections %}<a href="#{{ section.name }}">{{ section.name }}</a>{% endfor %}</nav>
{% for section in sections %}
<section id="{{ section.name }}"><h2>{{ section.title }}</h2>
{% for caption, table in section.tables.items() %}
{% if section.tables|length > 1 %}<h3>{{ caption }}</h3>{% endif %}
<div class="wide"><table><thead><tr>{% for cell in table[0] %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table[1] %}<tr>{% for cell in row %}<td>{{ cell|shown }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
{% if section.figure %}{{ section.figure|svg }}{% endif %}
<ul>{% for note in section.notes %}<li>{{ note }}</li>{% endfor %}</ul></section>
{% endfor %}
{% if left_out %}<section><h2>Left out</h2>
<ul>{% for line in left_out %}<li>{{ line }}</li>{% endfor %}</ul></section>{% endif %}
<section><h2>Environment</h2>
<ul>{% for key, value in environment.items() %}<li>{{ key }}: {{ value }}</li>{% endfor %}</ul>
</section></body></html>
"""


@dataclass(frozen=True)
class Section:
    """One experiment on the page."""

    name: str  # its name on the command line
    title: str
    tables: Mapping[str, Table]  # header and rows, by caption
    figure: Figure | None  # its figure, where it has one
    notes: Sequence[str]  # the setting, and every difference with its cause


def write_reproduction(
    file: Path,
    title: str,
    sections: Sequence[Section],
    *,
    command: str,
    environment: Mapping[str, Any],
    left_out: Sequence[str] = (),
) -> Path:
    """Write the page of the sections, the command that makes it, versions and machine, and what could not be run."""
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    jinja.filters |= {"shown": words.cell, "svg": lambda figure: Markup(svg(figure))}
    text = jinja.from_string(TEMPLATE).render(
        title=title, sections=sections, command=command, environment=environment, left_out=left_out
    )
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return file


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element without XML header; equal figures give equal text."""
    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"], "svg.fonttype": STYLE["svg.fonttype"]}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
