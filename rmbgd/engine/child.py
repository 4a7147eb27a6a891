"""The engine process: answers the requests of worker.py with a backend that a factory builds.

Runs as `python -m rmbgd.engine.child <connection> <arena> <parent>`, with two descriptors and a process number.
The parent decides when it ends: it ignores SIGTERM and SIGINT, which reach whole groups, ends when the connection does,
and is killed by the kernel when its parent dies. After a sticky fault it reports and exits at once, without
clean-up: in a poisoned device context every further call would fail or hang.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from dataclasses import asdict

from rmbgd.engine import ipc
from rmbgd.engine.arena import attach
from rmbgd.engine.golden_image import from_golden
from rmbgd.engine.types import Backend
from rmbgd.errors import EngineFault, ModelError

STICKY_STATUS = 70  # EX_SOFTWARE
OOM_SCORE_RAISE = 500  # when memory is short the kernel is to take this process, which is started again
STACKS_AT = 0.9  # of the deadline: then every thread's stack is written, so that a hang can be explained

DETAIL_MAXIMUM = 4000  # characters

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def main(arguments: list[str]) -> None:
    connection_fd, arena_fd, parent = (int(argument) for argument in arguments)
    tie_to_parent(parent, "rmbgd-engine")
    faulthandler.enable()
    with socket.socket(fileno=connection_fd) as connection:
        serve(connection, arena_fd)


def tie_to_parent(parent: int, name: str) -> None:
    """Make this process, `name` in lists, die with its parent, and before it where memory is short; no
    signal to a group ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        os._exit(STICKY_STATUS)
    libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = min(1000, int(file.read()) + OOM_SCORE_RAISE)
        file.seek(0)
        file.write(str(score))


def serve(connection: socket.socket, arena_fd: int) -> None:
    """Answer until the parent says close, or is gone."""
    backend: Backend | None = None
    try:
        while (request := ipc.receive(connection))["do"] != "close":
            faulthandler.dump_traceback_later(request["deadline"] * STACKS_AT)
            try:
                if backend is None:
                    module, _, name = request["factory"].partition(":")
                    block = attach(arena_fd, request["arena_bytes"])
                    os.close(arena_fd)
                    backend = getattr(importlib.import_module(module), name)(block, request["options"])
                    answer = {"description": ipc.from_description(backend.start())}
                    gc.collect()
                    gc.freeze()  # a full pass over all that torch imported would make a batch late, again and again
                elif request["do"] == "golden":
                    answer = {"golden": from_golden(backend.golden(request["model"]))}
                elif request["do"] == "canary":
                    answer = {"canary": asdict(backend.canary(request["blocks"]))}
                else:
                    batch = [ipc.to_work(work) for work in request["batch"]]
                    answer = {"report": asdict(backend.segment(batch))}
                sticky = False
            except Exception as error:  # noqa: BLE001 - whatever it was, the parent is to learn it
                answer, sticky = _fault(error)
            faulthandler.cancel_dump_traceback_later()
            ipc.send(connection, answer)
            if sticky:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(STICKY_STATUS)
    except (EOFError, BrokenPipeError):
        return
    if backend is not None:
        backend.close()


def _fault(error: Exception) -> tuple[ipc.Message, bool]:
    """What the parent learns, and whether this process can no longer be trusted."""
    kind, detail = ipc.kind_of(error), str(error)
    if isinstance(error, MemoryError):
        kind, detail = "memory", f"out of host memory {error}"
    elif not isinstance(error, (EngineFault, ModelError)):
        traceback.print_exception(error)
        detail = f"{type(error).__name__}: {error}"
    sticky = not isinstance(error, MemoryError) and getattr(error, "sticky", True)
    return {"fault": kind, "detail": detail[:DETAIL_MAXIMUM], "cause": getattr(error, "cause", "")}, sticky


if __name__ == "__main__":
    main(sys.argv[1:])
