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
from typing import Any

import tyro

from unconv.errors import UnconvError, UsageError
from unconv.verbs.options import Coherence, Invert, Report, Reproduce, Rip, Sparsity, Stages

VERBS = {
    "report": Report,
    "stages": Stages,
    "coherence": Coherence,
    "sparsity": Sparsity,
    "rip": Rip,
    "invert": Invert,
    "reproduce": Reproduce,
}


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
        options = parse(given)
        if options is None:
            return 0
        verb = importlib.import_module(f"unconv.verbs.{type(options).__name__.lower()}")
        document, text = verb.run(options)
        print(json.dumps(document, indent=1, allow_nan=False) if options.json else text)
        sys.stdout.flush()
    except UnconvError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from what is finished", 130, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
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
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                VERBS,
                prog="unconv",
                description="How much of the input is still in a layer of a CNN, and what does it look like?",
                args=arguments or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """Tyro frames its messages; what is wrong and what would be right, without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^[│|]\s?|\s*[│|]\s*$", "", line).strip() for line in plain.splitlines()]
    words = " ".join(line for line in lines if line and not set(line) <= set("─╭╮╰╯") and line[0] not in "╭╰")
    return re.sub(r"\s+", " ", words.replace("For full helptext, run", "; see")).replace(". ;", ";").replace(" ;", ";")


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"unconv: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
