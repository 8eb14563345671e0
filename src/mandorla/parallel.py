"""One batch on several processes: drawn globally, computed locally, gathered again.

Every process knows which samples form the whole batch of a step, and draws all random numbers of the whole batch from
the same keyed generator. Through the networks it sends only its own share of the rows; what comes out is gathered, so
that every process holds the codes and the losses of the whole batch and computes the same loss from them. So any number
of processes follows the same curve, up to rounding, and a share may be of any size, none included.

P processes hold the same loss, and what flows back into a row is summed over them: P times its gradient. The mean over
processes that DDP and FSDP take of the gradients of the weights sets that right.

With one process every function here gives back what it is given.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, distributed

ALL = slice(None)
Key, Piece, Value = TypeVar("Key", bound=Hashable), TypeVar("Piece"), TypeVar("Value")
_alike: ContextVar[bool] = ContextVar("alike", default=False)


def world() -> int:
    """Return the number P of processes that work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 .. P - 1."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is the process that writes and speaks for all."""
    return rank() == 0


def share(count: int) -> slice:
    """Return which of `count` rows are this process's own: shares follow each other and differ by one row at most."""
    return slice(*_ends(count)[rank() : rank() + 2]) if world() > 1 else ALL


def _ends(count: int) -> list[int]:
    """Return where the shares of `count` rows begin, and the last one ends."""
    return [count * number // world() for number in range(world() + 1)]


def counts_of(rows: Tensor) -> list[int] | None:
    """Return how many of the rows that the mask `rows`, bool `(B,)`, chooses from the whole batch each process has.

    None of one process, which need not count (and wait for a GPU).
    """
    return [int(part.sum()) for part in rows.tensor_split(_ends(len(rows))[1:-1])] if world() > 1 else None


def share_of(counts: Sequence[int] | None) -> slice:
    """Return which rows are the own share where each process has so many, as `counts_of` says."""
    if counts is None:
        return ALL
    before = sum(counts[: rank()])
    return slice(before, before + counts[rank()])


def turns() -> slice:
    """Return which of many pieces of work, to be done one after another, are this process's own: every P-th."""
    return slice(rank(), None, world())


def gather(z: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all processes, in their order, `(sum of B, ...)`, of `z` `(B, ...)`; differentiable.

    `counts`: how many rows each process has; left out, they ask each other.
    """
    if world() == 1:
        return z
    counts = counts or _ask(len(z))
    return _Gather.apply(z.byte(), counts).bool() if z.dtype == torch.bool else _Gather.apply(z, counts)


def gather_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts of all processes, in their order."""
    ended = "".join(f"{text}\0" for text in texts).encode()
    return bytes(gather(torch.tensor(list(ended), dtype=torch.uint8)).tolist()).decode().split("\0")[:-1]


def mean_of_all(z: Tensor) -> Tensor:
    """Return the mean of the values that all processes have in `z`, without gradient."""
    if world() == 1:
        return z.detach().mean()
    total, count = gather(torch.stack([z.detach().sum(), z.new_tensor(z.numel())])[None]).sum(0)
    return total / count


def anyone(asks: bool) -> bool:
    """Return whether any process asks; each of them is told the same."""
    return bool(gather(torch.tensor([asks])).any())


def wait() -> None:
    """Wait until all processes are here."""
    anyone(False)


@contextmanager
def alike(yes: bool = True) -> Iterator[None]:
    """Promise that all processes make the same calls inside, so that `divide` may divide what these take."""
    before = _alike.set(yes)
    try:
        yield
    finally:
        _alike.reset(before)


def divide(pieces: Sequence[Piece], work: Callable[[Piece], Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
    """Return the rows that `work` makes of all `pieces`, one at least, by name and in their order.

    Where processes are `alike` each does the work of some pieces that follow each other, and gets the rows of all.
    """
    divided = _alike.get() and world() > 1
    own = pieces[share(len(pieces))] if divided else pieces
    with alike(False):  # inside, each has pieces of its own
        parts = [work(piece) for piece in own or pieces[:1]]  # without own ones: to know what rows look like
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: gather(z if own else z[:0]) for name, z in rows.items()} if divided else rows


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one process after another through: what the first one writes, the others find."""
    for number in range(world()):
        if number == rank():
            yield
        wait()


@contextmanager
def led(context: AbstractContextManager[Value], value: Value) -> Iterator[Value]:
    """Enter `context`, which gives `value`, on the first process: before the others go on, and until they are done."""
    with context if is_first() else nullcontext(value):
        wait()
        yield value
        wait()


def _ask(count: int) -> list[int]:
    """Return the `count` of every process."""
    counts = torch.zeros(world(), dtype=torch.int64)  # on the CPU, where nobody has to wait for a GPU
    counts[rank()] = count
    distributed.all_reduce(counts)
    return counts.tolist()


class _Gather(torch.autograd.Function):
    """Each process adds its rows to zeros."""

    @staticmethod
    def forward(ctx, z: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.own = share_of(counts)
        whole = z.new_zeros(sum(counts), *z.shape[1:])
        whole[ctx.own] = z
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[ctx.own], None
