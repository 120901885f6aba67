"""``unconv reproduce``: a table or figure of the paper, ours beside theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unconv.commands.command_line import command_line
from unconv.commands.loading import choose_stages, open_images, open_model, rows_of_text
from unconv.commands.options import Reproduce
from unconv.commands.progress import progress_bar, say_skipped
from unconv.errors import UnconvError, UsageError
from unconv.evaluate.decoders import OpenedDecoder, open_decoders
from unconv.evaluate.run_directory import environment
from unconv.experiments import (
    alexnet,
    fig1,
    fig2,
    fig3,
    fig4,
    paper_values,
    promise,
    prop1,
    table1,
    table2,
    table3,
    table4,
    thm33,
)
from unconv.io import write_json
from unconv.models import BUNDLED, CIFAR_SIZE
from unconv.paper.committed import DECODERS, committed_result
from unconv.paper.experiment_context import Subject
from unconv.paper.thm31 import Setting
from unconv.reporting.reproduction import Section, Table, svg, write_reproduction

PIXELS_PER_INCH = 80

Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One experiment, as the command line runs it.

    Attributes:
        title: Its heading.
        run: From the options and the subject (a function, for not every experiment needs a network).
        tables: Header and rows by caption.
        draw: Its figure, where it has one.
        work: Units of work of its progress bar.
        suffix: Of its figure's file; pictures are no vectors.
        network: Whether it looks at a network.
    """

    title: str
    run: Callable[[Reproduce, Callable[[], Subject]], Result]
    tables: Callable[[Result], Mapping[str, Table]]
    draw: Callable[[Result], Figure] | None = None
    work: Callable[[Subject], int] = lambda _: 1
    suffix: str = ".svg"
    network: bool = True


def _image_space(experiment: Callable[[Subject, dict[str, OpenedDecoder]], Result]) -> Callable[..., Result]:
    def run(options: Reproduce, subject: Callable[[], Subject]) -> Result:
        opened = subject()
        return experiment(opened, open_decoders(opened.network, opened.stages, options.decoders, DECODERS))

    return run


def _one(table: Callable[[Result], Table]) -> Callable[[Result], Mapping[str, Table]]:
    return lambda result: {result["name"]: table(result)}


PARTS: dict[str, Part] = {
    "prop1": Part(
        "Proposition 1: perfect reconstruction, and filters in pairs",
        lambda options, subject: prop1.run(subject()),
        _one(prop1.table),
        prop1.draw,
    ),
    "fig1": Part(
        "Figure 1: the architecture", lambda options, subject: fig1.run(subject()), _one(fig1.table), fig1.draw
    ),
    "fig2": Part(
        "Figure 2: one-dimensional Gaussian layers",
        lambda options, subject: fig2.run(options.draws, options.seed, Setting(*options.sizes)),
        _one(fig2.table),
        fig2.draw,
        network=False,
    ),
    "thm31": Part(
        "Theorem 3.1: the sufficient condition",
        lambda options, subject: promise.run(Setting(*options.sizes)),
        _one(promise.table),
        network=False,
    ),
    "thm33": Part(
        "Theorem 3.3: one-step IHT and its bound",
        lambda options, subject: thm33.run(draws=options.samples, seed=options.seed),
        _one(thm33.table),
        network=False,
    ),
    "table1": Part(
        "Table 1: CIFAR-10 with random and with learned filters",
        lambda options, subject: table1.shown(committed_result("table1", table1.COMMAND)),
        table1.tables,
        network=False,
    ),
    "table2": Part(
        "Table 2: sparsity", lambda options, subject: table2.run(subject()), _one(table2.table), work=table2.work
    ),
    "fig3": Part(
        "Figure 3: model-RIP of a late layer",
        lambda options, subject: fig3.run(
            subject(), options.samples, options.recovered, options.steps, options.fractions
        ),
        fig3.tables,
        fig3.draw,
        fig3.work,
    ),
    "table3": Part(
        "Table 3: one-step IHT in activation space and in image space",
        _image_space(table3.run),
        table3.tables,
        work=table3.work,
    ),
    "fig4": Part(
        "Figure 4: decoded images",
        _image_space(fig4.run),
        _one(fig4.table),
        fig4.draw,
        fig4.work,
        ".png",
    ),
    "table4": Part("Table 4: coherence", lambda options, subject: table4.run(subject()), _one(table4.table)),
    "alexnet": Part(
        "AlexNet",
        lambda options, subject: alexnet.run(subject(), options.samples, options.recovered, options.steps),
        alexnet.tables,
        work=alexnet.work,
    ),
}


def run(options: Reproduce) -> tuple[dict[str, Any], str]:
    """Reproduce one experiment, or all that run for the model.

    Args:
        options: The options.

    Returns:
        The JSON document and its text.
    """
    check(options)
    if options.name == "all":
        return _all(options)
    options = of_its_model(options)
    result = _result(options, options.name, Opened(options))
    if options.out is not None:
        _write(options, result, options.out)
    return _document(result), _text(result)


def of_its_model(options: Reproduce) -> Reproduce:
    """The options with the model that the experiment is about, where the user names none.

    Args:
        options: The options.

    Returns:
        The options.
    """
    if options.name == "alexnet" and options.model == paper_values.MODEL:
        return replace(options, model="alexnet")
    return options


def folder(options: Reproduce) -> Path | None:
    """Where the files of an experiment go.

    Args:
        options: The options.

    Returns:
        The folder; ``None`` where nothing is written.
    """
    if options.out is None and options.name == "all":
        return Path("runs") / f"reproduction-{options.model.replace('/', '-').replace(':', '-')}"
    return options.out


def _all(options: Reproduce) -> tuple[dict[str, Any], str]:
    out = folder(options)
    assert out is not None
    opened = Opened(options)
    opened.subject()  # a model that cannot be opened is an error, not a line in the notes
    results: dict[str, Result] = {}
    left_out = []
    for name in PARTS:
        try:
            source = opened if name != "alexnet" else Opened(replace(options, model="alexnet", weights=None, stages=()))
            results[name] = _result(options, name, source)
        except UnconvError as error:
            left_out.append(f"{name}: {error}")
            continue
        _write(replace(options, name=name), results[name], out)
    sections = [
        Section(name, PARTS[name].title, PARTS[name].tables(result), _figure(result), result["notes"])
        for name, result in results.items()
    ]
    page = write_reproduction(
        out / "reproduction.html",
        f"The paper's tables and figures on {options.model}",
        sections,
        command=command(options),
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


@dataclass
class Opened:
    """The network and the images, opened when an experiment first asks for them."""

    options: Reproduce
    found: Subject | None = None

    def subject(self) -> Subject:
        """The network and the images.

        Returns:
            What the experiments run on.

        Raises:
            UnconvError: If the model cannot be opened; says what can be taken in place of the paper's.
        """
        if self.found is None:
            options = self.options
            if options.model == BUNDLED and options.size is None:
                options = replace(options, size=CIFAR_SIZE)
            otherwise = paper_values.WEIGHTS.get(options.model)
            try:
                loaded, network = open_model(options, otherwise=otherwise)
            except UnconvError as error:
                if options.weights is not None or otherwise is None:
                    raise
                raise type(error)(f"{error}, or take the bundled network with --model {BUNDLED}") from error
            images = open_images(options, loaded)
            shape = tuple(next(iter(images)).inputs.shape[1:])
            names, _ = choose_stages(loaded, network.stages(shape), options.stages)
            described = f"{options.model} ({loaded.weights.source})"
            self.found = Subject(described, network, names, images, shape, options.region, options.seed)
        return self.found


def _result(options: Reproduce, name: str, opened: Opened) -> Result:
    part = PARTS[name]

    def with_bar() -> Subject:
        subject = opened.subject()
        bar = progress.enter_context(progress_bar(part.work(subject)))
        return replace(subject, progress=bar)

    with ExitStack() as progress:
        result = part.run(options, with_bar)
    if opened.found is not None:
        say_skipped(opened.found.images.skipped)
    return result


def check(options: Reproduce) -> None:
    """Refuse numbers that are out of range.

    Args:
        options: The options.

    Raises:
        UsageError: If one is.
    """
    counts = {"draws": options.draws, "samples": options.samples, "region": options.region, "steps": options.steps}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name} is {value}; it is at least 1")
    if options.recovered < 0:
        raise UsageError(f"--recovered is {options.recovered}; it counts images, so it is at least 0")
    if not options.fractions or not all(0 < fraction < 1 for fraction in options.fractions):
        said = " ".join(map(str, options.fractions)) or "empty"
        raise UsageError(f"--fractions is {said}; each is a fraction of max |Wx|, above 0 and below 1")
    k, m, l, d, filters = options.sizes
    if min(options.sizes) < 1 or l > d or k > filters:
        raise UsageError(
            f"--sizes {k} {m} {l} {d} {filters} do not fit; give k M l D K, each at least 1, with k <= K and l <= D"
        )


def _write(options: Reproduce, result: Result, out: Path) -> None:
    settings = {key: value for key, value in vars(options).items() if key not in {"out", "json", "debug", "dry_run"}}
    settings["images"] = [str(path) for path in options.images] or "bundled photographs"
    settings["decoders"] = [str(path) for path in options.decoders]
    document = _document(result) | {"command": command(options), "config": settings, "environment": environment()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{result['name']}.json", document)
        figure = _figure(result)
        file = out / f"{result['name']}{PARTS[result['name']].suffix}"
        if figure is not None and file.suffix == ".svg":
            file.write_text(svg(figure), encoding="utf-8")
        elif figure is not None:
            figure.savefig(file, dpi=PIXELS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise UnconvError(f"cannot write to {out}: {error.strerror}") from error


def _document(result: Result) -> Result:
    # pictures are drawn, and have no place in JSON
    return {key: value for key, value in result.items() if key != "pictures"}


def _figure(result: Result) -> Figure | None:
    draw = PARTS[result["name"]].draw
    return None if draw is None else draw(result)


def _text(result: Result) -> str:
    lines = []
    for caption, (header, rows) in PARTS[result["name"]].tables(result).items():
        lines += [caption, rows_of_text(header, rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in result["notes"])])


def command(options: Reproduce) -> str:
    """The command line that runs this again.

    Args:
        options: The options.

    Returns:
        One line for a shell.
    """
    return command_line(("unconv", "reproduce", options.name), options, Reproduce(name=options.name), said=("name",))
