"""Networks that several processes train together, of which each may have all weights, or a part of them.

References: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, Zhao et al., 2023,
https://arxiv.org/abs/2304.11277.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mandorla.nets.blocks import normalise_in_common
from mandorla.parallel import is_first, world


def divided(
    module: nn.Module, average: nn.Module, sharded: Callable[[nn.Module], Iterable[nn.Module]] | None
) -> nn.Module:
    """Return `module` so that all processes train it together; what they have of it and of its `average` is the same.

    `sharded(network)` gives the parts of a network whose weights are divided, inner ones first; None: none are.
    """
    normalise_in_common(module)
    if sharded is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that this torch would call the first of these otherwise
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes seconds

    mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
    for network in (module, average):
        for part in sharded(network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)  # False: what is only looked at stays whole
    return module


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Give each process all weights of `network` inside, of which it may have a part, until it is called as a whole."""
    parts = [part for part in network.modules() if hasattr(part, "unshard")]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def full(z: Tensor) -> Tensor:
    """Return the whole of a tensor of which each process may have a part."""
    return z.full_tensor() if hasattr(z, "full_tensor") else z


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Undo `full`, for a tensor of which processes have the parts that they have of `like`."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements)


def on_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which each process may have a part as a whole on the CPU of the first; nothing on the others.

    One after another: all of them together may not fit into a GPU.
    """
    whole = {}
    for name, z in tensors.items():
        z = full(z)
        if is_first():
            whole[name] = z.detach().cpu()
    return whole
