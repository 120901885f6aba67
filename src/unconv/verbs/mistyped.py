"""Words of a command line that are no verb or no option of it: what is wrong, and what is near."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

OTHER_NAMES = {"start": "from"}


def mistyped(words: Sequence[str], verbs: Mapping[str, type], said: str) -> str | None:
    """What is wrong with words that the parser did not recognise.

    Args:
        words: What follows ``unconv``.
        verbs: The class of options of each verb.
        said: The parser's own message.

    Returns:
        One line; ``None`` where all words are known, and something else is wrong.
    """
    if not words or words[0].startswith("-"):
        return None
    verb, *words = words
    if verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, n=1)
        known = f"try {near[0]}" if near else f"use one of {', '.join(verbs)}"
        return f"there is no verb {verb}; {known}; see unconv --help"
    names = [field.name for field in dataclasses.fields(verbs[verb])]
    options = ["--" + OTHER_NAMES.get(name, name).replace("_", "-") for name in names]
    typed = (word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--"))
    wrong = next((option for option in typed if option not in {*options, "--help"}), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, options, n=1)
        known = f"; try {near[0]}" if near else ""
        return f"unconv {verb} has no option {wrong}{known}; see unconv {verb} --help"
    left = re.match(r"Unrecognized options: (.*?)(, |;|$)", said)
    if left is None or left[1] not in words:
        return None
    before = [word for word in words[: words.index(left[1])] if word.startswith("--")]
    if before and before[-1] in {"--mean", "--std"}:
        return f"{before[-1]} takes one number, or three with commas and no spaces, such as 0.485,0.456,0.406"
    after = f" after {before[-1]}" if before else ""
    return f"unconv {verb} cannot use {left[1]}{after}; see unconv {verb} --help"
