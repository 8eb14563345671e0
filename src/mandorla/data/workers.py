"""Work that several processes share and that comes back in order."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from mandorla.errors import MandorlaError
from mandorla.progress import progress_bar

T = TypeVar("T")


def work_in_order(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """Yield `function(*task)` of all `tasks` in order, done by so many processes; 0 for none but this one.

    At most a few more than there are workers wait to be taken.
    """
    results = (function(*task) for task in tasks) if workers == 0 else _work(function, tasks, workers)
    with progress_bar() as bar:
        yield from bar.track(results, len(tasks), description="reading files")


def _work(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        waiting, rest = deque(), iter(tasks)
        try:
            for _ in range(2 * workers):
                waiting += [pool.submit(function, *task) for task in [next(rest, None)] if task]
            while waiting:
                yield waiting.popleft().result()
                waiting += [pool.submit(function, *task) for task in [next(rest, None)] if task]
        except BrokenProcessPool as error:
            raise MandorlaError(
                "the processes that read files stopped: too little memory, or a script that does its work outside of "
                "`if __name__ == '__main__':`; set data.workers=0"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
