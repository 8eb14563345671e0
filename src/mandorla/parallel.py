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
    return slice(*(count * number // world() for number in (rank(), rank() + 1))) if world() > 1 else ALL


def share_of(rows: Tensor) -> slice:
    """Return which of the rows that the mask `rows`, bool `(B,)`, chooses from the whole batch are in the own share."""
    if world() == 1:
        return ALL
    own = share(len(rows))
    return slice(*(int(rows[:end].sum()) for end in (own.start, own.stop)))


def turns() -> slice:
    """Return which of many pieces of work, to be done one after another, are this process's own: every P-th."""
    return slice(rank(), None, world())


def gather(z: Tensor) -> Tensor:
    """Return the rows of all processes, in their order, `(sum of B, ...)`, of `z` `(B, ...)`; differentiable."""
    if world() == 1:
        return z
    return _Gather.apply(z.byte()).bool() if z.dtype == torch.bool else _Gather.apply(z)


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


class _Gather(torch.autograd.Function):
    """Each process adds its rows to zeros; their number, and how they lie in memory, goes ahead."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        known = torch.zeros(world(), 2, dtype=torch.int64)  # on the CPU, where nobody has to wait for a GPU
        known[rank()] = torch.tensor([len(z), len(z) > 0 and z.ndim > 3 and z.stride(1) == 1])
        distributed.all_reduce(known)
        (counts, last), here = known.unbind(1), rank()
        ctx.own = slice(int(counts[:here].sum()), int(counts[: here + 1].sum()))
        whole = z.new_zeros(int(counts.sum()), *z.shape[1:])
        whole[ctx.own] = z
        distributed.all_reduce(whole)
        if last.any():  # numbers drawn in the likeness of a tensor follow its order in memory
            whole = whole.to(memory_format=torch.channels_last if z.ndim == 4 else torch.channels_last_3d)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[ctx.own]
