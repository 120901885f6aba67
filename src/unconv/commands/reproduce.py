"""``unconv reproduce``: a table or figure of the paper, ours beside theirs."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from tqdm import tqdm

from unconv.commands import format_table, print_skipped
from unconv.errors import UnconvError, UsageError, check_whole
from unconv.evaluate.network import open_network
from unconv.evaluate.run_directory import environment
from unconv.io import write_json, writing
from unconv.options import Reproduce, command_line
from unconv.paper import paper_values
from unconv.paper.context import Context, Result, context_of
from unconv.paper.experiments import EXPERIMENTS
from unconv.reporting.style import STYLE

BUNDLED, CIFAR_SIZE = "cifar-vgg", 32
PIXELS_PER_INCH = 80
# options that not every experiment reads
USED_BY = {
    "draws": ("fig2",),
    "samples": ("fig3", "thm33"),
    "recovered": ("fig3",),
    "steps": ("fig3",),
    "fractions": ("fig3",),
    "sizes": ("fig2", "thm31"),
    "decoders": ("table3", "fig4"),
}


def run(options: Reproduce) -> tuple[dict[str, Any], str]:
    """Reproduce one experiment, or all that run for the model; return the JSON document and its text."""
    _check(options)
    if options.name == "all":
        return _all(options)
    result = _result(options.name, options)
    if options.out is not None:
        _write(options, result, options.out)
    return _document(result), _text(result)


@cache
def _open(options: Reproduce) -> Context:
    """Open the network and the images, when an experiment first asks for them."""
    try:
        opened = open_network(
            options.model,
            options.images or None,
            weights=options.weights or paper_values.WEIGHTS.get(options.model),
            size=CIFAR_SIZE if options.model == BUNDLED and options.size is None else options.size,
            download=options.weights is not None,
            **{name: getattr(options, name) for name in ("mean", "std", "batch", "limit", "device", "seed")},
        )
    except UnconvError as error:
        if options.weights is not None or options.model not in paper_values.WEIGHTS:
            raise
        raise type(error)(f"{error}, or take the bundled network with --model {BUNDLED}") from error
    return context_of(opened, wanted=options.blocks, region=options.region, seed=options.seed)


def _all(options: Reproduce) -> tuple[dict[str, Any], str]:
    out = options.out or Path("runs") / f"reproduction-{options.model.replace('/', '-').replace(':', '-')}"
    _open(options)  # a model that cannot be opened is an error, not a line in the notes
    results: dict[str, Result] = {}
    left_out = []
    for name in EXPERIMENTS:
        try:
            results[name] = _result(name, options)
        except UnconvError as error:
            left_out.append(f"{name}: {error}")
            continue
        _write(replace(options, name=name), results[name], out)
    document = {
        "name": "all",
        "paper": {name: result["paper"] for name, result in results.items()},
        "ours": {name: result["ours"] for name, result in results.items()},
        "notes": [f"{name}: {note}" for name, result in results.items() for note in result["notes"]] + left_out,
    }
    text = "\n\n".join(_text(result) for result in results.values())
    return document, "\n".join([text, "", *(f"left out, {line}" for line in left_out), f"in {out}"])


def _result(name: str, options: Reproduce) -> Result:
    used: list[Context] = []

    def context() -> Context:
        used.append(replace(_open(options), progress=lambda message: bar.set_description_str(f"{name}: {message}")))
        return used[0]

    with tqdm(file=sys.stderr, leave=False, bar_format="{desc}") as bar:
        result = EXPERIMENTS[name].run(options, context)
    print_skipped(asdict(image) for one in used for image in one.skipped)
    return result


def _check(options: Reproduce) -> None:
    for name, used_by in USED_BY.items():
        if options.name not in ("all", *used_by) and getattr(options, name) != getattr(Reproduce, name):
            raise UsageError(f"--{name} has no effect on {options.name}; it belongs to {' and '.join(used_by)}")
    check_whole(**{name: getattr(options, name) for name in ("draws", "samples", "region", "steps")})
    check_whole(0, recovered=options.recovered)
    if not options.fractions or not all(0 < fraction < 1 for fraction in options.fractions):
        values = " ".join(map(str, options.fractions)) or "empty"
        raise UsageError(f"--fractions is {values}; each is a fraction of max |Wx|, above 0 and below 1")
    k, m, l, d, filters = options.sizes
    if min(options.sizes) < 1 or l > d or k > filters:
        raise UsageError(
            f"--sizes {k} {m} {l} {d} {filters} do not fit; give k M l D K, each at least 1, with k <= K and l <= D"
        )


def _write(options: Reproduce, result: Result, out: Path) -> None:
    settings = {key: value for key, value in vars(options).items() if key not in {"out", "json", "debug"}}
    settings |= {name: [str(path) for path in settings[name]] for name in ("images", "decoders")}
    document = _document(result) | {"command": command_line("reproduce", options), "config": settings}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{result['name']}.json", document | {"environment": environment()})
        experiment = EXPERIMENTS[result["name"]]
        figure, file = experiment.draw(result), out / f"{result['name']}{experiment.suffix}"
        # without a date and with a fixed salt, equal results give equal files
        metadata = {"Date": None, "Creator": None} if file.suffix == ".svg" else {"Software": None}
        if figure is not None:
            with matplotlib.rc_context({name: STYLE[name] for name in ("svg.hashsalt", "svg.fonttype")}):
                figure.savefig(file, dpi=PIXELS_PER_INCH, metadata=metadata)


def _document(result: Result) -> Result:
    # pictures are drawn, and have no place in JSON
    return {key: value for key, value in result.items() if key != "pictures"}


def _text(result: Result) -> str:
    lines = []
    for caption, (header, rows) in EXPERIMENTS[result["name"]].tables(result).items():
        lines += [caption, format_table(header, rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in result["notes"])])
