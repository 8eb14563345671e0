"""What the scripts in this folder share: what they are asked, a training of so many minutes, what they answer.

`benchmarks/peers.py` calls each as `python SCRIPT FOLDER`. It runs where its peer is installed, and knows of the rest
of the project no more than the folder:

    settings.json   model, seed, minutes, num_samples, num_generated; modalities: {name: [channels, *size]};
                    routes: [[given modalities], [wanted modalities]] each; networks: {name: kind and sizes of ours};
                    flip: axes after the channels that are mirrored for half of the training samples, as for ours
    recipe.yaml     ours, for ours
    ../data         known/, test/, translated/NAME.npy, (N, C, *size): samples that probes are fitted on, that are
                    measured, that are translated; train/NAME.npy: all there is to train on; donor.npy (N,): the
                    test sample that gives sample i its private part in a swap

Images are uint8, to be divided by 255, or floats in [0, 1]. An answer is NAME.npy in a folder of FOLDER, of what a
model can do and nothing else:

    known/shared, known/private, test/shared, test/private   codes (N, ...) of modality NAME, read from it alone
    given/A+B                     NAME given modalities A and B, (num_samples, N, C, *size), of `translated` or, in
                                  a model of codes, decoded from the shared code of test samples, private parts drawn
    mean/A+B                      the same with the private part at its prior mean, (1, N, ...)
    swapped                       decoded from the sample's own shared code and the private code of its donor
    joint, joint mixture          generated tuples (num_generated, C, *size), by the model's own prior, or by a mixture
                                  of Gaussians fitted to codes afterwards

Last comes `report.json`, without which an answer does not count.

A minute is one of computing: processor time over threads, which is the time on the clock where a core is free, and
what another program takes away where it is not is nobody's loss. On a GPU it is one on the clock.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Images = dict[str, Tensor]  # (B, C, *size) in [0, 1] by name of modality
_CHUNK = 250  # samples that go through a network at once
_WARMUP = 0.05  # share of the training
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def minutes() -> float:
    """Return the minutes that this process has computed so far."""
    if DEVICE.type == "cuda":
        return time.perf_counter() / 60
    return time.process_time() / torch.get_num_threads() / 60


class Stopwatch:
    """Count minutes since it was made: of computing, and on the clock."""

    def __init__(self) -> None:
        self.begun = minutes(), time.perf_counter() / 60

    def read(self) -> tuple[float, float]:
        """Return both."""
        return minutes() - self.begun[0], time.perf_counter() / 60 - self.begun[1]


class Task:
    """Hold what is asked in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder.parent / "data"
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.model: str = settings["model"]
        self.seed: int = settings["seed"]
        self.minutes: float = settings["minutes"]
        self.num_samples: int = settings["num_samples"]
        self.num_generated: int = settings["num_generated"]
        self.modalities: dict[str, list[int]] = settings["modalities"]
        self.routes: list[tuple[list[str], list[str]]] = settings["routes"]
        self.networks: dict[str, dict] = settings["networks"]
        self.flip: list[int] = settings["flip"]
        torch.manual_seed(self.seed)

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """Return the images of a part of the data, on the disk."""
        return {name: np.load(self.data / part / f"{name}.npy", mmap_mode="r") for name in self.modalities}

    def images(self, part: str) -> Images:
        """Return all images of a part of the data."""
        return to_images(self.arrays(part))

    def donor(self) -> np.ndarray:
        """Return who gives each test sample its private part, `(N,)`."""
        return np.load(self.data / "donor.npy")

    def write(self, place: str, arrays: dict[str, Tensor]) -> None:
        """Write an answer."""
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(self.folder / place / f"{name}.npy", array.detach().float().cpu().numpy())

    def report(self, spent: tuple[float, float], steps: int, module: nn.Module, how: str) -> None:
        """Write what the training took, as a stopwatch says, how many steps of how many parameters, and how."""
        size = sum(parameter.numel() for parameter in module.parameters())
        numbers = {"minutes": spent[0], "minutes_on_clock": spent[1], "steps": steps, "parameters": size, "how": how}
        (self.folder / "report.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def read_task() -> Task:
    """Return the task in the folder that the command line names; what is made from now on is made on the device."""
    torch.set_default_device(DEVICE)
    return Task(Path(sys.argv[1]))


def to_images(arrays: dict[str, np.ndarray], rows: Sequence[int] | np.ndarray | slice = slice(None)) -> Images:
    """Return some rows of arrays as images in [0, 1], on the device."""
    chosen = {name: torch.from_numpy(np.array(array[rows])).to(DEVICE) for name, array in arrays.items()}
    return {name: x.float() / 255 if x.dtype == torch.uint8 else x.float() for name, x in chosen.items()}


def train(
    task: Task,
    module: nn.Module,
    loss: Callable[[Images], Tensor],
    batch_size: int,
    learning_rate: float,
    share: float = 1.0,
    amsgrad: bool = False,
) -> int:
    """Train `module` by Adam for a share of the minutes and return how many steps that were.

    The learning rate rises over the first twentieth of the time and falls by a cosine to zero.
    """
    arrays = task.arrays("train")
    batches = _batches(len(next(iter(arrays.values()))), batch_size, task.seed)
    optimiser = torch.optim.Adam(module.parameters(), learning_rate, amsgrad=amsgrad)
    module.train()
    begun, steps = minutes(), 0
    while (done := (minutes() - begun) / (share * task.minutes)) < 1:
        rate = min(1.0, (done + 1e-3) / _WARMUP) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * rate
        value = loss(flipped(to_images(arrays, next(batches)), task.flip))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        steps += 1
    module.eval()
    return steps


def flipped(x: Images, axes: Sequence[int]) -> Images:
    """Mirror half of the samples along each of `axes`, which come after the channels; all modalities alike."""
    for axis in axes:
        mirrored = torch.rand(len(next(iter(x.values())))) < 0.5
        x = {name: torch.where(_column(mirrored, z), z.flip(2 + axis), z) for name, z in x.items()}
    return x


def _column(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (like.ndim - 1))


def _batches(num: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows of batches, pass after pass over all samples, each in an order of its own."""
    rng, batch_size = np.random.default_rng(seed), min(batch_size, num)
    while True:
        order = rng.permutation(num)[: num // batch_size * batch_size]
        yield from np.sort(order.reshape(-1, batch_size), axis=1)


@torch.no_grad()
def in_chunks(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return what `function` makes of the rows of `inputs`, some rows at a time."""
    parts = zip(*(z.split(_CHUNK) for z in inputs), strict=True)
    return torch.cat([function(*part).float() for part in parts])


def in_bf16() -> torch.autocast:
    """Return what lets a network compute in bfloat16, as ours do."""
    return torch.autocast(DEVICE.type, torch.bfloat16)
