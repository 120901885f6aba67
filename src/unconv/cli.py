"""The command line: ``unconv VERB MODEL [options]``."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import re
import sys
import textwrap
import traceback
from typing import Any

from unconv.errors import UnconvError, UsageError
from unconv.io import one_line
from unconv.options import VERBS, in_options

WELCOME = """\
unconv says how much of an image is still in each layer of a convolutional network, and shows it.

  unconv doctor                           check that everything works here (a few seconds)
  unconv report cifar-vgg --size 96       analyse the bundled network on sample photographs, and write a page
  unconv report resnet18 --weights my-resnet18.pth --images photos/
  unconv layers mymodels:build            a network of your own: which of its layers can be inverted
  unconv invert mymodels:build --layer layer1 --images photos/ --out pictures/

  unconv --help                           all verbs; unconv VERB --help shows the options of one

In Python: import unconv; unconv.invert("cifar-vgg", "features.3", "photos/")"""
DESCRIPTION = "How much of the input is still in a layer of a CNN, and what does it look like?"
GOES_ON = "the same command goes on from what is finished"
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's settings in malloc.h
KEPT = (2**30, 2**25)  # bytes that glibc keeps of freed memory; the second where an older one refuses the first


def main(arguments: list[str] | None = None) -> int:
    """Run one verb with what follows ``unconv``; return 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        if not words or words == ["--version"]:
            print(f"unconv {importlib.import_module('importlib.metadata').version('unconv')}" if words else WELCOME)
            return 0
        if words[0] in {"-h", "--help"}:
            print(overview())
            return 0
        options = parse(words)
        if options is None:
            return 0
        _keep_freed_memory()
        document, text = importlib.import_module(f"unconv.commands.{words[0].replace('-', '_')}").run(options)
        with contextlib.suppress(AttributeError):  # the name of a folder may hold bytes that are no text
            sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
        print(json.dumps(document, indent=1, allow_nan=False) if options.json else text)
        sys.stdout.flush()
        return 1 if document.get("ok") is False else 0  # what doctor says of an installation that does not work
    except UnconvError as error:
        return _fail(in_options(str(error)), 2 if isinstance(error, UsageError) else 1, debug)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {GOES_ON}", 130, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        file = "" if error.filename is None else f" ({error.filename})"
        return _fail(f"the machine failed: {error.strerror or error}{file}; {GOES_ON}", 1, debug)
    except Exception as error:  # the contract: one line, and the traceback only under --debug
        kind = type(error).__name__
        return _fail(f"unexpected {kind}: {error}; run again with --debug and report what it prints", 1, debug)


def _keep_freed_memory() -> None:
    """Keep the memory of large tensors for the next ones: clearing fresh memory took a sixth of the time."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # only glibc has mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for kept in KEPT:
            if mallopt(MMAP_THRESHOLD, kept):
                mallopt(TRIM_THRESHOLD, kept)
                return


def overview() -> str:
    """Return the help of ``unconv`` itself: every verb with the first line of its options' docstring."""
    width = max(map(len, VERBS)) + 4
    lines = ["usage: unconv VERB MODEL [options]", "", DESCRIPTION, ""]
    for verb, options in VERBS.items():
        says = (options.__doc__ or "").partition("\n\n")[0]
        lines.append(textwrap.fill(f"  {verb:{width - 2}}{says}", 100, subsequent_indent=" " * width))
    return "\n".join([*lines, "", "unconv VERB --help shows the options of one; unconv alone shows examples."])


def parse(arguments: list[str]) -> Any:
    """Return the options of a verb (a class of ``unconv.options``), ``None`` where help was printed."""
    import tyro

    verb = arguments[0]
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb}; use one of {', '.join(VERBS)}; see unconv --help")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(VERBS[verb], prog=f"unconv {verb}", args=arguments[1:], config=config)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(_without_frame(printed.getvalue())) from None


def _without_frame(box: str) -> str:
    """Return tyro's message on one line, without its frame and without the help of the option that is wrong."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|^[+|]|[+|]$|-{3,}", " ", box, flags=re.MULTILINE)
    line = re.sub(r"\s+", " ", plain).strip()
    line = re.sub(r"( Argument helptext:.*?)?\.? For full helptext, (run|see):? ", "; see ", line)
    titles = "Value error|Invalid choice|Missing argument|Required options|Unrecognized options(?= [Uu]nr)"
    return re.sub(rf"^({titles}) ", "", line)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"unconv: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return status
