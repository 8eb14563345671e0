"""On how many cores torch computes.

Threads meet after every operation, and a network of this size takes thousands of operations a second: a thread that
waits for its core holds up all others. One thread too many costs a factor of ten, one too few a factor below two.
Processes that work together on one machine divide the cores.
"""

import os

import psutil
import torch

_LOOK = 0.2  # seconds
_BUSY = 50  # percent


def use_idle_cores() -> None:
    """Let torch compute on one thread per core that is idle now, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        loads = psutil.cpu_percent(_LOOK, percpu=True)
        idle = sum(load < _BUSY for load in loads) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, min(idle, torch.get_num_threads())))
