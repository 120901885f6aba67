"""The progress bar: how far, how long still, and the current error; nothing where it is not wanted."""

import re

from unconv.commands.progress import progress_bar


def test_the_bar_says_time_left_and_what_was_done(capsys):
    with progress_bar(4) as done:
        done("inverting features.3 by convex, error 0.123", 1)
        done("inverting features.3 by convex, error 0.456", 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"so far, \S+ left", err)


def test_no_bar(capsys):
    with progress_bar(4, shown=False) as done:
        done("counting", 4)
    assert capsys.readouterr() == ("", "")
