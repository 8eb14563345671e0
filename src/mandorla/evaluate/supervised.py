"""How the evaluation trains its own networks on real labelled samples: the judges, and who outlines lesions."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.data.dataset import Batch, Dataset, on_device
from mandorla.device import own_random
from mandorla.nets.blocks import trains_in_bf16

Network = TypeVar("Network", bound=nn.Module)


def train_network(
    build: Callable[[], Network],
    loss: Callable[[Network, Batch, torch.autocast], Tensor | None],
    train: Dataset,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
) -> Network:
    """Return the network that `build` gives, trained: AdamW under a one-cycle learning rate.

    `loss(network, batch, autocast)` calls the network under `autocast`, which is bfloat16 where that can be trusted;
    None passes over a batch that tells nothing. The same seed gives the same network; the random state stays.
    """
    rng, train = np.random.default_rng(seed), on_device(train, torch.device(device))
    with own_random(seed):
        network = build().to(device)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
        autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=trains_in_bf16(network))
        for _ in range(steps):
            batch = train.batch(rng.integers(len(train), size=batch_size))
            if (error := loss(network, batch, autocast)) is None:
                continue
            optimiser.zero_grad(set_to_none=True)
            error.backward()
            optimiser.step()
            lr_schedule.step()
    return network.eval()
