"""``unconv reproduce``: a table or figure of the paper, ours beside theirs."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unconv.commands import format_table, print_skipped
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.network import open_device
from unconv.evaluate.run_directory import environment
from unconv.images import ImageStream, find_images, sample_photographs
from unconv.io import write_json
from unconv.models import load_model
from unconv.options import Reproduce, command_line
from unconv.paper import paper_values
from unconv.paper.context import Context, Result, open_context
from unconv.paper.experiments import EXPERIMENTS

BUNDLED, CIFAR_SIZE = "cifar-vgg", 32
PIXELS_PER_INCH = 80


def run(options: Reproduce) -> tuple[dict[str, Any], str]:
    """Reproduce one experiment, or all that run for the model; return the JSON document and its text."""
    _check(options)
    if options.name == "all":
        return _all(options)
    result = _result(options.name, Opened(options))
    if options.out is not None:
        _write(options, result, options.out)
    return _document(result), _text(result)


class Opened:
    """The network and the images, opened when an experiment first asks for them."""

    def __init__(self, options: Reproduce) -> None:
        """Open nothing yet."""
        self.options = options
        self.found: Context | None = None

    def context(self) -> Context:
        """Return what the experiments run on."""
        if self.found is None:
            options = self.options
            if options.model == BUNDLED and options.size is None:
                options = replace(options, size=CIFAR_SIZE)
            weights = options.weights or paper_values.WEIGHTS.get(options.model)
            arguments = {name: getattr(options, name) for name in ("size", "mean", "std")}
            try:
                loaded = load_model(options.model, weights=weights, download=options.weights is not None, **arguments)
            except UnconvError as error:
                if options.weights is not None or options.model not in paper_values.WEIGHTS:
                    raise
                raise type(error)(f"{error}, or take the bundled network with --model {BUNDLED}") from error
            for note in loaded.notes:
                print(f"note: {note}", file=sys.stderr)
            paths = find_images(list(options.images)) if options.images else sample_photographs()
            self.found = open_context(
                loaded,
                ImageStream(paths[: options.limit], loaded.preprocess, options.batch),
                blocks=options.blocks,
                region=options.region,
                seed=options.seed,
                device=str(open_device(options.device)),
            )
        return self.found


def _all(options: Reproduce) -> tuple[dict[str, Any], str]:
    from unconv.reporting.reproduction import Section, write_reproduction

    name_of_model = options.model.replace("/", "-").replace(":", "-")
    out = options.out or Path("runs") / f"reproduction-{name_of_model}"
    opened = Opened(options)
    opened.context()  # a model that cannot be opened is an error, not a line in the notes
    results: dict[str, Result] = {}
    left_out = []
    for name in EXPERIMENTS:
        try:
            results[name] = _result(name, opened)
        except UnconvError as error:
            left_out.append(f"{name}: {error}")
            continue
        _write(replace(options, name=name), results[name], out)
    sections = [
        Section(name, EXPERIMENTS[name].title, EXPERIMENTS[name].tables(result), EXPERIMENTS[name].draw(result), notes)
        for name, result in results.items()
        for notes in [result["notes"]]
    ]
    page = write_reproduction(
        out / "reproduction.html",
        f"The paper's tables and figures on {options.model}",
        sections,
        command=command_line("reproduce", options),
        environment=environment(),
        left_out=left_out,
    )
    document = {
        "name": "all",
        "paper": {name: result["paper"] for name, result in results.items()},
        "ours": {name: result["ours"] for name, result in results.items()},
        "notes": [f"{name}: {note}" for name, result in results.items() for note in result["notes"]] + left_out,
        "page": str(page),
    }
    text = "\n\n".join(_text(result) for result in results.values())
    return document, "\n".join([text, "", *(f"left out, {line}" for line in left_out), f"page: {page}"])


def _result(name: str, opened: Opened) -> Result:
    experiment = EXPERIMENTS[name]

    def context() -> Context:
        return replace(opened.context(), progress=lambda message: bar.set_description_str(f"{name}: {message}"))

    with tqdm(file=sys.stderr, leave=False, bar_format="{desc}") as bar:
        result = experiment.run(experiment.load(), opened.options, context)
    if opened.found is not None:
        print_skipped(asdict(image) for image in opened.found.images.skipped)
    return result


def _check(options: Reproduce) -> None:
    for name in ("draws", "samples", "region", "steps", "batch", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; it is at least 1")
    if options.recovered < 0:
        raise UsageError(f"--recovered is {options.recovered}; it counts images, so it is at least 0")
    if not options.fractions or not all(0 < fraction < 1 for fraction in options.fractions):
        values = " ".join(map(str, options.fractions)) or "empty"
        raise UsageError(f"--fractions is {values}; each is a fraction of max |Wx|, above 0 and below 1")
    k, m, l, d, filters = options.sizes
    if min(options.sizes) < 1 or l > d or k > filters:
        raise UsageError(
            f"--sizes {k} {m} {l} {d} {filters} do not fit; give k M l D K, each at least 1, with k <= K and l <= D"
        )


def _write(options: Reproduce, result: Result, out: Path) -> None:
    from unconv.reporting.reproduction import svg

    settings = {key: value for key, value in vars(options).items() if key not in {"out", "json", "debug"}}
    settings |= {name: [str(path) for path in settings[name]] for name in ("images", "decoders")}
    document = _document(result) | {"command": command_line("reproduce", options), "config": settings}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{result['name']}.json", document | {"environment": environment()})
        experiment = EXPERIMENTS[result["name"]]
        figure, file = experiment.draw(result), out / f"{result['name']}{experiment.suffix}"
        if figure is not None and file.suffix == ".svg":
            file.write_text(svg(figure), encoding="utf-8")
        elif figure is not None:
            figure.savefig(file, dpi=PIXELS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise UnconvError(f"cannot write to {out}: {error.strerror}") from error


def _document(result: Result) -> Result:
    # pictures are drawn, and have no place in JSON
    return {key: value for key, value in result.items() if key != "pictures"}


def _text(result: Result) -> str:
    lines = []
    for caption, (header, rows) in EXPERIMENTS[result["name"]].tables(result).items():
        lines += [caption, format_table(header, rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in result["notes"])])
