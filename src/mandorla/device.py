"""Where torch computes: on which GPU, or on how many cores.

Threads meet after every operation, and a network of this size takes thousands of operations a second: a thread that
waits for its core holds up all others. One thread too many costs a factor of ten, one too few a factor below two.
Processes that work together on one machine divide the cores.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from mandorla.errors import MandorlaError
from mandorla.parallel import world

_LOOK = 0.2  # seconds
_BUSY = 50  # percent


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here, of several GPUs that of this process (LOCAL_RANK).

    Raises MandorlaError if cuda is not there, or processes that work together would share a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise MandorlaError("device: cuda is set, but no CUDA device is available: set device to auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    alone = gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # SLURM may show each process its own and no other
    if world() > 1 and here > gpus and not alone:
        raise MandorlaError(f"{here} processes, but {gpus} GPUs: start as many as there are, or set device to cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % gpus)


@contextmanager
def own_random(seed: int | None = None) -> Iterator[None]:
    """Draw inside from generators of its own, from `seed` where it is given; those outside go on as if nothing was."""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def use_idle_cores() -> None:
    """Let torch compute on one thread per core that is idle now, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        loads = psutil.cpu_percent(_LOOK, percpu=True)
        idle = sum(load < _BUSY for load in loads) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, min(idle, torch.get_num_threads())))
