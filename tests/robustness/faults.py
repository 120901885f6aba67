"""Commands in children of multiprocessing's fork server, disturbed on purpose, and networks small enough for many.

Faults of a command, all of them optional; changes of the file system are counted from 1:

* ``die_at``: SIGKILL before that change; ``interrupt_at``: SIGINT there;
* ``die_naming``: SIGKILL before a temporary file gets a name that holds this;
* ``kill_after``: SIGKILL after so many seconds;
* ``unreadable``: names of files whose opening fails with EIO;
* ``file_size``: RLIMIT_FSIZE in bytes;
* ``unprivileged``: a root that permissions stop;
* ``threads``: of torch; ``environ``: variables of the environment;
* ``changes``: a file that lists every change; ``page``: whether the page is drawn, which takes most of a run.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

NETWORKS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU())

def dividing():
    class Dividing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = net()[0], net()[3]

        def forward(self, x):
            return self.second(self.first(x) / x.amax((1, 2, 3), keepdim=True))

    return Dividing()

def overflowing():
    made = net()
    made[0].bias.data.zero_()
    made[0].weight.data.abs_()
    made[3].weight.data.fill_(1e38)
    return made

def pruned():
    made = net()
    made[0].weight.data[1] = 0
    made[0].bias.data.zero_()
    return made
"""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["unconv.api", "unconv.cli", "unconv.reporting.page", "unconv.evaluate.report_run"])


@dataclass
class Ended:
    """A command that has ended: its exit status (negative: the signal), stdout, stderr and seconds."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document of a command that succeeded."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The one line of an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("unconv: ")]
        assert "Traceback" not in self.err
        assert "unexpected" not in line
        return line


def results(run: Path) -> list[dict[str, Any]]:
    """The rows of a run without their times."""
    return [row | {"seconds": None} for row in pq.read_table(run / "results.parquet").to_pylist()]


def run(*words: str | Path, cwd: Path, **faults: Any) -> Ended:
    """Run one command to its end, which the faults may bring early."""
    files = [cwd.parent / f"{cwd.name}.{name}" for name in ("out", "err")]
    process = PROCESSES.Process(target=_child, args=([os.fspath(word) for word in words], str(cwd), files, faults))
    start = time.perf_counter()
    process.start()
    process.join(faults.get("kill_after"))
    if process.is_alive():
        process.kill()
        process.join()
    out, err = (file.read_text(errors="backslashreplace") for file in files)
    assert process.exitcode is not None
    return Ended(process.exitcode, out, err.replace("\r", "\n"), time.perf_counter() - start)


def _child(words: list[str], cwd: str, files: list[Path], faults: dict[str, Any]) -> None:
    import torch

    from unconv.cli import main

    os.chdir(cwd)
    os.environ.update(faults.get("environ", {}))
    for file, number in zip(files, (1, 2), strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    for stream, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, stream, os.fdopen(os.dup(number), "w", errors="backslashreplace"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    torch.set_num_threads(faults.get("threads", 1))
    if faults.get("unprivileged"):
        _drop_privileges()
    if not faults.get("page"):
        _draw_no_page()
    sys.addaudithook(_hook(faults))
    if "file_size" in faults:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["file_size"], resource.RLIM_INFINITY))
    try:
        status = main(words)
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _hook(faults: dict[str, Any]) -> Any:
    count = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(faults["changes"], flags) if "changes" in faults else None

    def changed_path(event: str, arguments: tuple[Any, ...]) -> str | None:
        if not arguments or isinstance(arguments[0], int) or arguments[0] is None:
            return None
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        return os.fsdecode(arguments[0]) if event in CHANGES or opened else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open" and os.path.basename(str(arguments[0])) in faults.get("unreadable", ()):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))
        path = changed_path(event, arguments)
        if path is None or path == os.devnull:
            return
        count += 1
        if log is not None:
            os.write(log, json.dumps([event, os.path.abspath(path)]).encode() + b"\n")
        named = event == "os.rename" and faults.get("die_naming", "/") in os.fsdecode(arguments[1])
        if count == faults.get("die_at") or ("die_naming" in faults and named):
            os.kill(os.getpid(), signal.SIGKILL)
        if count == faults.get("interrupt_at"):
            os.kill(os.getpid(), signal.SIGINT)

    return hook


def _draw_no_page() -> None:
    import unconv.reporting.page
    from unconv.io import replacing

    def write_report(path: Path, *given: Any, **more: Any) -> Path:
        with replacing(path / "report.html") as temporary:
            temporary.write_text("<p>no page</p>" * 4000)
        return path / "report.html"

    unconv.reporting.page.write_report = write_report


def _drop_privileges() -> None:
    """Give up root's right to read and write whatever it likes, and nothing else."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
