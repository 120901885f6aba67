"""Runs ``unconv`` commands in forked children, so that a test of a crash does not pay for importing torch.

Reads one JSON document per line on stdin: a list of commands that run at the same time, each of them
``{"words", "cwd", "out", "err", "figures"}`` and faults, all of them optional. Changes of the file system are counted
from 1.

* ``die_at``: SIGKILL before that change; ``interrupt_at``: SIGINT there;
* ``die_naming``: SIGKILL before a temporary file gets a name that holds this;
* ``terminate_naming``: SIGTERM there;
* ``kill_after``: SIGKILL after so many seconds;
* ``unreadable``: names of files whose opening fails with EIO;
* ``coming``: seconds that a rank waits for one that has not come;
* ``file_size``: RLIMIT_FSIZE in bytes;
* ``unprivileged``: a root that permissions stop;
* ``threads``: of torch;
* ``environ``: variables of the environment;
* ``changes``: a file that lists every change.

Answers with ``{"status"}``, one for each (negative: the signal), at the end of all.
"""

import errno
import json
import os
import resource
import signal
import sys
import time
import traceback

import torch

import unconv.commands.report
import unconv.evaluate.shards
from unconv.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changed_path(event: str, arguments: tuple) -> str | None:
    """Path of the file or folder that an audited event is about to change; ``None`` for other events."""
    if not arguments or isinstance(arguments[0], int) or arguments[0] is None:
        return None
    if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        return os.fsdecode(arguments[0])
    return None


def install_faults(order: dict) -> None:
    count = 0
    log = None
    if "changes" in order:
        log = os.open(order["changes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open" and os.path.basename(str(arguments[0])) in order.get("unreadable", ()):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))
        path = changed_path(event, arguments)
        if path is None or path == os.devnull:
            return
        count += 1
        if log is not None:
            os.write(log, json.dumps([event, os.path.abspath(path)]).encode() + b"\n")
        named = event == "os.rename" and order.get("die_naming", "/") in os.fsdecode(arguments[1])
        if count == order.get("die_at") or ("die_naming" in order and named):
            os.kill(os.getpid(), signal.SIGKILL)
        ended = event == "os.rename" and order.get("terminate_naming", "/") in os.fsdecode(arguments[1])
        if "terminate_naming" in order and ended:
            os.kill(os.getpid(), signal.SIGTERM)
        if count == order.get("interrupt_at"):
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)


def drop_privileges() -> None:
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


def child(order: dict) -> int:
    os.chdir(order["cwd"])
    os.environ.update(order.get("environ", {}))
    for path, number in ((order["out"], 1), (order["err"], 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    # whoever started the server may ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(order.get("threads", 1))
    if order.get("unprivileged"):
        drop_privileges()
    if not order["figures"]:
        unconv.commands.report.write_figures = lambda data, run: []
    if "coming" in order:
        unconv.evaluate.shards.COMING = order["coming"]
    install_faults(order)
    if "file_size" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], resource.RLIM_INFINITY))
    try:
        status = main(order["words"])
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def wait(running: dict[int, dict]) -> dict[int, int]:
    start = time.monotonic()
    ended = {}
    while len(ended) < len(running):
        for pid, order in running.items():
            if pid in ended:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = status
            elif time.monotonic() - start >= order.get("kill_after", float("inf")):
                # not waited for yet, so the number is still this child's
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return ended


def serve() -> None:
    for line in sys.stdin:
        running = {}
        for order in json.loads(line):
            pid = os.fork()
            if pid == 0:
                os._exit(child(order))
            running[pid] = order
        ended = wait(running)
        print(json.dumps({"status": [os.waitstatus_to_exitcode(ended[pid]) for pid in running]}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
