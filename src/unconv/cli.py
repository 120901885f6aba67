"""The command line: ``unconv VERB MODEL [options]``."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import tyro

from unconv.commands.options import (
    Coherence,
    Doctor,
    Invert,
    Layers,
    Report,
    Reproduce,
    Rip,
    Sparsity,
    TrainDecoder,
)
from unconv.errors import UnconvError, UsageError

VERBS = {
    "report": Report,
    "layers": Layers,
    "coherence": Coherence,
    "sparsity": Sparsity,
    "rip": Rip,
    "invert": Invert,
    "reproduce": Reproduce,
    "train-decoder": TrainDecoder,
    "doctor": Doctor,
}

COMPLETION, SHELLS = "--tyro-print-completion", ("bash", "zsh", "fish")
WELCOME = """\
unconv says how much of an image is still in each layer of a convolutional network, and shows it.

  unconv doctor                           check that everything works here (a few seconds)
  unconv report cifar-vgg --size 32       analyse the bundled network on sample photographs, and write a page
  unconv report resnet18 --weights my-resnet18.pth --images photos/
  unconv report mymodels:build --images photos/ --dry-run
                                          a network of your own; says what would be done and how long it takes

  unconv --help                           all verbs; unconv VERB --help shows the options of one
  unconv --tyro-print-completion bash     completion for your shell: bash, zsh or fish

In Python: import unconv; unconv.invert("cifar-vgg", "features.3", "photos/")"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: What follows ``unconv``; taken from the process where ``None``.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        if not given:
            print(WELCOME)
            return 0
        options = parse(given)
        if options is None:
            return 0
        name = next(name for name, kind in VERBS.items() if kind is type(options))
        verb = importlib.import_module(f"unconv.commands.{name.replace('-', '_')}")
        found = verb.run(options)
        if found is None:  # of several processes, the first prints
            return 0
        document, text = found
        # the name of a folder may hold bytes that are no text
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
        print(json.dumps(document, indent=1, allow_nan=False) if options.json else text)
        sys.stdout.flush()
        if document.get("ok") is False:  # what doctor says of an installation that does not work
            return 1
    except UnconvError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from what is finished", 130, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = "" if error.filename is None else f" ({error.filename})"
        reason = error.strerror or error
        return _fail(f"the machine failed: {reason}{where}; the same command goes on from what is finished", 1, debug)
    except Exception as error:  # the contract: one line, and the traceback only under --debug
        kind = type(error).__name__
        return _fail(f"unexpected {kind}: {error}; run again with --debug and report what it prints", 1, debug)
    return 0


def parse(arguments: list[str]) -> Any:
    """The options of a verb from the words of the command line.

    Args:
        arguments: What follows ``unconv``.

    Returns:
        One of the classes of ``verbs.options``; ``None`` where help was asked for and printed.

    Raises:
        UsageError: If the words are not understood, in one line.
    """
    if arguments[:1] == [COMPLETION] and arguments[1:] not in ([shell] for shell in SHELLS):
        raise UsageError(f"{COMPLETION} needs the name of your shell: {', '.join(SHELLS)}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                VERBS,
                prog="unconv",
                description="How much of the input is still in a layer of a CNN, and what does it look like?",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        plain = _without_frame(said.getvalue())
        raise UsageError(_in_prose(plain)) from None


def _without_frame(box: str) -> str:
    """Tyro frames its messages; what is wrong and what would be right, without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^[│|]\s?|\s*[│|]\s*$", "", line).strip() for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and set(lines[1]) == {"-"}:  # without box characters the title stands on a line of its own
        del lines[0]
    words = " ".join(line for line in lines if line and not set(line) <= set("─-╭╮╰╯") and line[0] not in "╭╰")
    words = words.replace("For full helptext, run", "; see").replace("For full helptext, see", "; see")
    return re.sub(r"\s+", " ", words).replace(". ;", ";").replace(" ;", ";")


def _in_prose(words: str) -> str:
    for pattern, prose in PROSE:
        words = re.sub(pattern, prose, words)
    return words


def _choice(found: re.Match[str]) -> str:
    # tyro lists choices in the order of a set, and None among them where an option may be left out
    choices = sorted(set(re.findall(r"'([^']*)'", found["choices"])) - {"None"})
    return f"{found['option']} is {found['value']}; use {', '.join(choices[:-1])} or {choices[-1]}"


def _value(found: re.Match[str]) -> str:
    kind = {"INT": "a whole number", "FLOAT": "a number"}.get(found["kind"], found["kind"])
    return f"{found['option']} is {found['value']}; it takes {kind}{found['rest']}"


def _missing(found: re.Match[str]) -> str:
    return f"Missing from {found['verb']}: MODEL, {found['first'].lower()}{found['help']}; see "


PROSE: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (
        r"^invalid choice (?P<value>'.*?') for argument '(?P<option>.*?)'\. "
        r"Expected one of \((?P<choices>.*?)\)",
        _choice,
    ),
    (
        r"^Error parsing (?P<option>--\S+): .*?(from \[|: )(?P<value>'.*?').*"
        r"Argument helptext: --\S+ (\{None\}\|)?(?P<kind>\S+) .*(?P<rest>; see .*)$",
        _value,
    ),
    (r"^Missing from (?P<verb>unconv \S+): STR (?P<first>.)(?P<help>.*?)\.? \(required\)\.?; see: ", _missing),
    (r"^Unrecognized options: (.*?) Available subcommands: (.*)(; see .*)$", r"there is no verb \1; use one of \2\3"),
    (r"^Unrecognized options: ", "there is no option "),
    (r"Expected 1 values", "It takes one"),
]


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    message = " ".join(message.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in message)
    print(f"unconv: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
