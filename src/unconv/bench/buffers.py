"""glibc gives large buffers back after every call; kept, timings measure arithmetic instead of page faults."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

QUIET = {"KINETO_LOG_LEVEL": "99"}  # its profiler writes to stderr
KEPT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def keep_buffers() -> None:
    """Start this command again with the variables that make malloc keep its buffers; they are read at the start only.

    Does nothing where they are set already, where malloc is not glibc's, or where this is not the command ``bench``
    of a process of its own (a call from Python).
    """
    started = sys.argv[1:2] == ["bench"] and Path(sys.argv[0]).stem in {"unconv", "cli", "__main__"}
    if started and platform.libc_ver()[0] == "glibc" and not kept():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEPT | QUIET)


def kept() -> bool:
    """Whether this process keeps its buffers."""
    return all(name in os.environ for name in KEPT)
