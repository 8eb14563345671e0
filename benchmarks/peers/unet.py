"""Peers for translation: MONAI's U-Net under L1, one for any contrasts from any others, or one for each route.

It sees all contrasts side by side, those that are not given as zeros, and a map for each that says whether it is given;
the loss is that of those that are not. What is given is drawn at random for every sample of a batch. `unet-per-route`
trains a network for each route, each for all the minutes.

References: U-Net, Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597; Cardoso et al., "MONAI", 2022,
https://arxiv.org/abs/2211.02701 (BasicUNet).
"""

import torch
from monai.networks.nets import BasicUNet
from task import Images, Stopwatch, Task, in_bf16, in_chunks, read_task, train
from torch import Tensor, nn

_WIDTHS = (32, 48, 96, 192, 224, 32)  # about the parameters of our stage 1 on three contrasts
_BATCH_SIZE = 16
_LEARNING_RATE = 1e-3


def draw_given(num: int, names: list[str], empty: bool = False) -> Tensor:
    """Return which of the contrasts `names` are given, bool `(num, M)`, each proper subset as often as any other.

    At least one is given, or none where it may be `empty`.
    """
    numbers = torch.randint(0 if empty else 1, 2 ** len(names) - 1, (num, 1))
    return (numbers >> torch.arange(len(names))) % 2 == 1


def mask_of(given: list[str], names: list[str], num: int) -> Tensor:
    """Return the same for contrasts that are known, `(num, M)`."""
    return torch.tensor([name in given for name in names]).expand(num, -1)


def masked(x: Tensor, given: Tensor) -> Tensor:
    """Return `x` `(B, M, *size)` without what is not `given` `(B, M)`, and maps that say so, `(B, 2 M, *size)`."""
    maps = given.float()[:, :, None, None].expand_as(x)
    return torch.cat([x * maps, maps], 1)


def main() -> None:
    """Train and answer."""
    task = read_task()
    names, each = list(task.modalities), task.model == "unet-per-route"
    jobs = [[route] for route in task.routes] if each else [task.routes]
    nets = nn.ModuleList(BasicUNet(2, 2 * len(names), len(names), features=_WIDTHS) for _ in jobs)
    watch, steps = Stopwatch(), 0
    for net, ((given, _), *_) in zip(nets, jobs, strict=True):

        def loss(images: Images, net: nn.Module = net, given: list[str] = given) -> Tensor:
            x = torch.cat([images[name] for name in names], 1)
            known = mask_of(given, names, len(x)) if each else draw_given(len(x), names)
            with in_bf16():
                guess = net(masked(x, known))
            return (guess.float() - x).abs()[~known].mean()

        steps += train(task, net, loss, _BATCH_SIZE, _LEARNING_RATE)
    spent = watch.read()
    for net, routes in zip(nets, jobs, strict=True):
        answer(task, net, routes)
    task.report(spent, steps, nets, f"batches of {_BATCH_SIZE}")


def answer(task: Task, net: nn.Module, routes: list[tuple[list[str], list[str]]]) -> None:
    """Write one image for each of `routes` and samples to translate."""
    images, names = task.images("translated"), list(task.modalities)
    x = torch.cat(list(images.values()), 1)
    for given, wanted in routes:
        guess = in_chunks(net, masked(x, mask_of(given, names, len(x)))).clamp(0, 1)
        task.write(f"given/{'+'.join(given)}", {name: guess[None, :, [names.index(name)]] for name in wanted})


if __name__ == "__main__":
    main()
