"""The old name of ``cases``."""

from cases import *  # noqa: F403
