"""What a clone of the repository carries besides the package: results that take hours, and trained decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unconv.errors import UnconvError

ROOT = Path(__file__).parents[3] / "experiments"
DECODERS = ROOT / "decoders"


def committed_result(name: str, made_by: str) -> dict[str, Any]:
    """A result that is committed rather than computed.

    Args:
        name: Its path below ``experiments/results``, without ``.json``.
        made_by: The command that makes it, for the message.

    Returns:
        The document.

    Raises:
        UnconvError: If it is not there, as in an installed package.
    """
    file = ROOT / "results" / f"{name}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        raise UnconvError(
            f"the committed result experiments/results/{name}.json is not there; run from a clone of the repository, "
            f"or make it by {made_by}"
        ) from None
