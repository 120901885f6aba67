"""Ranks as forked children, as in the tests of faults."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from forked import place, server

__all__ = ["place", "server"]
