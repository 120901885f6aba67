"""Progress and remarks on stderr, so that stdout stays the result's alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from unconv.images import SkippedImage

BAR = "{percentage:3.0f}% |{bar:20}| {elapsed} so far, {remaining} left; {desc}"


@contextmanager
def progress_bar(total: int, *, shown: bool = True) -> Iterator[Callable[[str, int], None]]:
    """A bar on stderr with the time left; in a log that is no terminal it prints seldom.

    Args:
        total: Units of work.
        shown: Whether there is a bar at all.

    Yields:
        A function to call with what has been done (with its error, where there is one) and how many units that was.
    """
    quiet = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(
        total=total,
        file=sys.stderr,
        mininterval=quiet,
        dynamic_ncols=True,
        leave=False,
        disable=not shown,
        bar_format=BAR,
    ) as bar:

        def done(what: str, units: int) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update(units)

        yield done


def say_skipped(skipped: Iterable[SkippedImage]) -> None:
    """Name on stderr what was left out.

    Args:
        skipped: The images.
    """
    for image in skipped:
        print(f"skipped {image.file}: {image.reason}", file=sys.stderr)
