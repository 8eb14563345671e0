"""Several processes that work together, without the seconds that starting Python and importing torch take."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch._dynamo  # noqa: F401  DDP imports it when it is first made: here once, instead of in every process


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (below 0: the signal), and what it printed."""

    status: int
    out: str
    err: str


def together(num: int, folder: Path, work: Callable[[int], object], patience: float = 200) -> list[Ended]:
    """Fork `num` processes with torchrun's variables that call `work(rank)`; return how each ended.

    One that has not ended in `patience` seconds is killed, and counts as killed. They keep what they print in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [_fork(rank, num, port, folder, work) for rank in range(num)]
    status, until = {}, time.monotonic() + patience
    while len(status) < num:
        for rank, pid in enumerate(pids):
            if rank not in status and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                status[rank] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > until:
            for rank in set(range(num)) - status.keys():
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.01)
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(num)]
    return [Ended(status[rank], *texts[rank]) for rank in range(num)]


def _fork(rank: int, num: int, port: int, folder: Path, work: Callable[[int], object]) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as in commands in the background
        work(rank)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
