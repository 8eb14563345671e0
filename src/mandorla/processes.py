"""The processes that do the work of one command together: on one machine or several, with a GPU each or without.

They are started by torchrun, by SLURM's srun, or by the command itself where the recipe's `trainer` says so; then
torch's launcher stands above them. All find each other through the variables that torchrun sets (RANK, WORLD_SIZE,
MASTER_ADDR and others). Work that cannot be divided is left to the first. A mistake or a warning is said once, by
whoever comes to it first.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from pathlib import Path

from mandorla.errors import MandorlaError

TYPE_CHECKING = False  # the command line imports this module first: it has to be light
if TYPE_CHECKING:
    from mandorla.training import TrainerConfig

DIVIDED = ("train", "encode", "sample", "translate", "evaluate", "audit")  # commands whose work processes divide
_LONGEST_WAIT = timedelta(days=1)  # for a process that has more to do; that one has ended is noticed at once


@contextmanager
def together(command: str) -> Iterator[None]:
    """Do the work of `command` together with the processes that were started with this one; only the first prints.

    Where it cannot be divided the first does it alone, and the others exit.
    """
    _read_slurm()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    first = os.environ["RANK"] == "0"
    if command not in DIVIDED:
        if not first:
            sys.exit()
        for name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]  # what this process starts is alone too
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of no use: that a step happens to need all weights
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    global _store
    _store, rank, world = next(rendezvous("env://", timeout=_LONGEST_WAIT))
    distributed.init_process_group(store=_store, rank=rank, world_size=world, timeout=_LONGEST_WAIT)
    with open(os.devnull, "w") as nowhere, nullcontext() if first else redirect_stdout(nowhere):
        yield
    distributed.destroy_process_group()


_store = None  # what all processes can look into, once they have met


def joined() -> bool:
    """Return whether this process works together with others."""
    return _store is not None


def speaks(about: str = "the end") -> bool:
    """Return whether it is for this process to say what it has to say `about` something: nobody else has asked so far.

    By default that is how the command ends.
    """
    try:
        return not joined() or _store.add(about, 1) == 1
    except RuntimeError:  # the process that keeps the store has ended, and has said why
        return False


def starts(trainer: "TrainerConfig") -> bool:
    """Return whether this process has to start those that `trainer` asks for, and leave the work to them."""
    return trainer.devices * trainer.num_nodes > 1 and "RANK" not in os.environ


def expect(trainer: "TrainerConfig") -> None:
    """Raise MandorlaError if `trainer` asks for processes that nobody started."""
    if starts(trainer):
        raise MandorlaError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}: `mandorla train` and torchrun"
            " start several processes, this does not: set both to 1"
        )


def start(trainer: "TrainerConfig", arguments: Sequence[str]) -> int:
    """Start processes that run `mandorla` with `arguments` together; return the exit status when all have ended.

    Raises MandorlaError if one of them was killed, or machines have no place to meet.
    """
    if trainer.num_nodes > 1 and not trainer.rendezvous:
        raise MandorlaError("trainer.num_nodes: several machines need trainer.rendezvous=host:port to meet")
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of the launcher: what a process has to say it says itself
    source = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    config = LaunchConfig(
        min_nodes=trainer.num_nodes,
        max_nodes=trainer.num_nodes,
        nproc_per_node=trainer.devices,
        run_id="mandorla",
        rdzv_backend="c10d",
        rdzv_endpoint=trainer.rendezvous or "localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "mandorla", *arguments)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status < 0:
            raise MandorlaError(f"a process was ended by signal {-status}; the same command goes on") from error
        return status
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _read_slurm() -> None:
    """Set the variables that torchrun would have set, if this is one of several tasks of an srun."""
    slurm = os.environ
    if "RANK" in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    name, number = re.match(r"([^,\[]+)(?:\[(\d+))?", slurm["SLURM_STEP_NODELIST"]).groups(default="")
    os.environ |= {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": slurm["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0].partition(",")[0],
        "MASTER_ADDR": slurm.get("MASTER_ADDR", name + number),
        "MASTER_PORT": slurm.get("MASTER_PORT", str(20000 + int(slurm["SLURM_JOB_ID"]) % 20000)),
    }
