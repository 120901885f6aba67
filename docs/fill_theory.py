"""Measure brackets of delta_k, fill brackets.csv and tables of theory.md: ``python docs/fill_theory.py [NAME ...]``.

Every NAME (see ``RUNS``; all of a model by its first word, such as ``cifar-vgg``) is measured by its ``unconv rip``
command and put into ``experiments/results/rip/NAME.json``. Weights and images are looked for in the current folder.
Then, or at once where no NAME is given, brackets.csv is written from these, and the tables at ``<!-- table: NAME -->``
are filled from ``experiments/results/thm31-scaling.json``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
import sys
from typing import Any

from tables import DOCS, RESULTS, fill_page, markdown, read

from unconv.cli import main
from unconv.evaluate.run_directory import environment
from unconv.io import write_json
from unconv.paper.thm31 import THEOREM, VARIABLES

RIP = RESULTS / "rip"
CIFAR = ("rip", "cifar-vgg", "--size", "32", "--samples", "200")
VGG19 = (
    *("rip", "vgg19", "--weights", "vgg19-blocks1-3.safetensors", "--mean", "123.68,116.779,103.939", "--std", "1"),
    *("--images", "ilsvrc-val-227", "--limit", "4", "--samples", "20"),
)
RUNS = {
    "cifar-vgg": CIFAR,
    "cifar-vgg-k2": (*CIFAR, "--k", "2"),
    "cifar-vgg-k8": (*CIFAR, "--k", "8"),
    "vgg19": VGG19,
    "vgg19-k2": (*VGG19, "--k", "2"),
    "vgg19-k8": (*VGG19, "--k", "8"),
}


def measure(name: str) -> None:
    """Run one command and keep what it says, with the command and the machine."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main([*RUNS[name], "--json"])
    if status:
        sys.exit(status)
    document = {"name": "rip", "command": shlex.join(("unconv", *RUNS[name]))} | json.loads(said.getvalue())
    RIP.mkdir(parents=True, exist_ok=True)
    write_json(RIP / f"{name}.json", document | {"environment": environment()})


def write_brackets() -> None:
    """Write the bracket of every conv block at every number of regions in use, with the norms of random codes."""
    header = ("network", "conv block", "k", "delta lower", "delta upper", "random norms p01", "random norms p99")
    rows: list[tuple[object, ...]] = [header]
    for name, (_, network, *_) in RUNS.items():
        run = read(RIP / f"{name}.json")
        for block in run.get("blocks") or run["stages"]:
            delta, ratio = block["delta"], block["ratio"]
            numbers = (f"{n:.4g}" for n in (delta["lower"], delta["upper"], ratio["p01"], ratio["p99"]))
            rows.append((network, block.get("layer") or block["stage"], block["k"], *numbers))
    with (DOCS / "brackets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def exponents(ours: dict[str, Any]) -> str:
    """The fitted exponents beside the theorem's."""
    rows = []
    for name in VARIABLES:
        found = [ours["fits"][kind]["exponents"][name] for kind in ("lower", "upper")]
        cells = [f"{f['exponent']:+.2f} ({f['interval'][0]:.2f} to {f['interval'][1]:.2f})" for f in found]
        theorem = f"{THEOREM[name]:+g}" if THEOREM[name] else "logarithm"
        rows.append((f"`{name}`", *cells, theorem))
    return markdown(("size", "lower bound", "upper bound", "theorem"), rows)


def constant(ours: dict[str, Any]) -> str:
    """What the theorem's constant is at least, and what is enough."""
    found = ours["C"]
    return (
        f"On these layers the theorem's constant is at least {found['refuted_below']:.2f}, and {found['enough']:.2f} "
        "is enough (`eps` = 0.01)."
    )


def made(kind: str, name: str) -> str:
    """One of the tables of Theorem 3.1."""
    table = {"thm31-exponents": exponents, "thm31-constant": constant}[name]
    return table(read(RESULTS / "thm31-scaling.json")["ours"])


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        names = [name for name in RUNS if name == wanted or name.startswith(f"{wanted}-k")]
        if not names:
            sys.exit(f"no run {wanted!r}; use some of {', '.join(RUNS)}")
        for each in names:
            measure(each)
    write_brackets()
    fill_page("theory.md", made)
