"""``unconv bench``: floors and peers in one run."""

from __future__ import annotations

import shlex
from typing import Any

from unconv.bench.buffers import keep_buffers
from unconv.errors import UnconvError, UsageError
from unconv.verbs.options import Bench

FILE, FIGURE, PART = "bench.json", "bench.svg", "bench.part.json"


def run(options: Bench) -> tuple[dict[str, Any], str]:
    """Time every part beside the bare torch calls that it must make, and beside other libraries.

    Args:
        options: The options.

    Returns:
        The JSON document, which is written to the folder too, and its text.

    Raises:
        UnconvError: If the folder cannot be written.
        UsageError: If a part does not exist.
    """
    check(options)
    keep_buffers()

    # only now: a process that starts again need not have loaded torch before
    from unconv.atomic import replacing, write_json
    from unconv.bench.figure import draw
    from unconv.bench.run import FLOORS, NAMES, UNITS, bench
    from unconv.bench.subject import BenchSubject
    from unconv.images import cannot_write
    from unconv.verbs.opening import open_device
    from unconv.verbs.progress import progress_bar

    unknown = [name for name in options.only if name not in NAMES]
    if unknown:
        raise UsageError(f"--only is {unknown[0]!r}; use some of {', '.join(NAMES)}")
    names = [name for name in NAMES if not options.only or name in options.only]
    device = open_device(options.device)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / PART, {})  # what cannot be written is said before the work
    except OSError as error:
        raise UnconvError(cannot_write(options.out, error)) from error
    subject = BenchSubject.load(options.size, options.weights, options.mean, options.std, options.image, device)
    with progress_bar(sum(1 if name in FLOORS else UNITS[name] for name in names)) as progress:
        document = bench(
            subject,
            names,
            options.runs,
            command=_command(options),
            done=lambda what: progress(what, 1),
            keep=lambda part: write_json(options.out / PART, part),
        )
    try:
        write_json(options.out / FILE, document)
        with replacing(options.out / FIGURE) as temporary:
            draw(document["rows"]).savefig(temporary, format="svg")
        (options.out / PART).unlink(missing_ok=True)
    except OSError as error:
        raise UnconvError(cannot_write(options.out, error)) from error
    return document, text(document)


def check(options: Bench) -> None:
    """Refuse numbers that are out of range.

    Args:
        options: The options.

    Raises:
        UsageError: If one is.
    """
    if options.runs < 1:
        raise UsageError(f"--runs is {options.runs}; it counts paired runs, so it is at least 1")
    if options.size < 16:
        raise UsageError(f"--size is {options.size}; the layers pool and convolve, so it is at least 16")
    if (options.mean is not None or options.std is not None) and options.weights is None:
        raise UsageError("--mean and --std say how the weights see an image; give --weights with them")


def text(document: dict[str, Any]) -> str:
    """What is printed: rows, targets, missing peers.

    Args:
        document: From ``bench``.

    Returns:
        The text.
    """
    from unconv.verbs.opening import rows_of_text

    rows = []
    for row in document["rows"]:
        ratio = row["ratio"]
        what = row["setting"] if row["kind"] == "floor" else f"{row['peer']}, {row['method']}; {row['setting']}"
        shown = (
            ("-", row["note"])
            if ratio is None
            else (f"{ratio['median']:.3g}", f"{ratio['q1']:.3g} to {ratio['q3']:.3g}")
        )
        rows.append((row["group"], *shown, what))
    lines = [rows_of_text(("benchmark", "ratio", "quartiles", "what"), rows), ""]
    for target in document["targets"]:
        word, bound = ("at most", target["at_most"]) if "at_most" in target else ("at least", target["at_least"])
        measured = "not reached" if target["measured"] is None else f"{target['measured']:.3g}"
        met = "met   " if target["met"] else "missed"
        lines.append(f"{met}  {word} {bound:g}: {measured}  {target['group']}, {target['setting']}")
    for missing in document["missing"]:
        lines.append(f"without {missing['peer']} ({missing['reason']}); get it with: {missing['install']}")
    return "\n".join(lines)


def _command(options: Bench) -> str:
    words = ["unconv", "bench", "--runs", str(options.runs)]
    for name in ("only", "size", "weights", "mean", "std", "device"):
        value = getattr(options, name)
        if value and value != getattr(Bench(), name):
            shown = value if isinstance(value, tuple) else (str(value),)
            # the name of a file, not where it lies on this machine
            words += [f"--{name}", *(part.rsplit("/", 1)[-1] if name == "weights" else part for part in shown)]
    return shlex.join(words)
