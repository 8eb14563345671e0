#!/usr/bin/env python3
"""How fast samples come, against a plain `torch.utils.data.DataLoader` and MONAI's CacheDataset over the same files.

    python benchmarks/loader.py [--num 400] [--size 128] [--workers 2] [--steps 20]

Prints, for PNG files and for NIfTI files of one slice each, samples/s and MB/s (of the float32 that is delivered) in
the first epoch, which reads the files, and in later ones (the median of three), and how many times faster each is than
the plain loader; how fast cached latents are read at random places; and the share of a training step of stage 1 that is
spent waiting for a batch. The files are slices of the phantom, in a folder of their own that is removed afterwards.

The first epoch of `mandorla folders` holds more than reading: images are hashed and compared, to find copies in two
parts, and their intensity is read off. `mandorla shards` were packed before, so that this is done.

What counts is the ratios, which are of one run: other programs on the machine slow all down alike. MONAI is measured
where it is installed (`pip install monai`, in an environment of its own).
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import mandorla.training
from mandorla.data import load_data, pack_data
from mandorla.data.dataset import Splits
from mandorla.data.folders import FoldersConfig
from mandorla.data.phantom import PhantomConfig
from mandorla.data.shards import ShardsConfig
from mandorla.latent_cache import LatentPart, record
from mandorla.latents import SHARED, Layout
from mandorla.recipe import read_recipe
from mandorla.training import batch_indices
from mandorla.vae.training import fit_vae

MODALITIES = ("t1", "t2")
BATCH = 32
EPOCHS = 3  # after the first
Epoch = Callable[[], Iterator[dict[str, Tensor]]]


class Speed(NamedTuple):
    """Hold samples per second in the `first` epoch and in `later` ones, and the bytes of a sample."""

    first: float
    later: float
    num_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=400, help="samples, of two files each")
    parser.add_argument("--size", type=int, default=128, help="pixels along an edge")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the other loaders")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    settings = parser.parse_args(arguments)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{os.cpu_count()} cores, load {load}, torch on {torch.get_num_threads()} thread(s)")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder)
        write_files(root, settings.num, settings.size)
        for suffix in (".png", ".nii.gz"):
            compare(root, suffix, settings.workers)
        print(f"\nlatents at random places: {latents_per_second(root / 'latents'):.2f} GB/s")
        print("\nshare of a step of stage 1 spent waiting for its batch:")
        for name, data in sources(root, settings.size).items():
            share, step = waiting(root / f"run-{name}", data, settings.steps)
            print(f"  {name:24} {share:6.1%} of {1e3 * step:.0f} ms")


def write_files(root: Path, num: int, size: int) -> None:
    """Write slices of the phantom as `png/t1/0000.png`, `nii.gz/t1/0000.nii.gz` and so on."""
    config = PhantomConfig(size=(size, size), num_train=num, num_val=1, num_test=1)
    train = load_data(config, 0).train
    for modality in MODALITIES:
        (root / "png" / modality).mkdir(parents=True)
        (root / "nii.gz" / modality).mkdir(parents=True)
    for start in range(0, num, BATCH):
        batch = train.batch(np.arange(start, min(start + BATCH, num)))
        for modality in MODALITIES:
            for k, image in enumerate(batch.x[modality].numpy()):
                pixels, name = np.rint(255 * image[0]).astype(np.uint8), f"{start + k:05d}"
                Image.fromarray(pixels).save(root / "png" / modality / f"{name}.png")
                volume = nibabel.Nifti1Image(pixels[:, :, None], np.eye(4))
                nibabel.save(volume, root / "nii.gz" / modality / f"{name}.nii.gz")


def compare(root: Path, suffix: str, workers: int) -> None:
    """Print the speed of each loader over the files with `suffix`."""
    folder = root / suffix[1:]
    files = [{m: str(path.parents[1] / m / path.name) for m in MODALITIES} for path in sorted(folder.glob("t1/*"))]
    ours = measure(lambda: mandorla_epochs(folders(folder)))
    pack_data(folders(folder), 0, root / f"shards{suffix}", 1024)
    speeds: dict[str, Speed | None] = {
        f"plain loader, {num} workers": measure(lambda num=num: torch_epochs(Plain(files), num))
        for num in sorted({0, workers})
    }
    plain = max(speeds.values(), key=lambda speed: speed.later)
    speeds |= {
        "MONAI CacheDataset": measure_monai(files, workers),
        "mandorla folders": ours,
        "mandorla shards": measure(lambda: mandorla_epochs(shards(root, suffix))),
    }
    print(f"\n{len(files)} pairs of {suffix}, batches of {BATCH}; times the faster plain loader in brackets")
    print(f"  {'':24} {'first epoch: samples/s':>26} {'MB/s':>7}   {'later: samples/s':>26} {'MB/s':>7}")
    for name, speed in speeds.items():
        if speed is None:
            print(f"  {name:24} not installed here: skipped")
            continue
        cells = []
        for own, other in ((speed.first, plain.first), (speed.later, plain.later)):
            cells.append(f"{own:15,.0f} ({own / other:7.2f}x) {own * speed.num_bytes / 1e6:8,.1f}")
        print(f"  {name:24} {'   '.join(cells)}")


def measure(start: Callable[[], Epoch]) -> Speed:
    """Return the speed of what `start` sets up, which counts towards the first epoch."""
    seconds, num, num_bytes = [], 0, 0
    begun = time.perf_counter()
    epoch = start()
    for _ in range(1 + EPOCHS):
        num, num_bytes = 0, 0
        for x in epoch():
            num += len(x["t1"])
            num_bytes += sum(value.numel() * value.element_size() for value in x.values())
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return Speed(num / seconds[0], num / median(seconds[1:]), num_bytes // num)


def measure_monai(files: list[dict[str, str]], workers: int) -> Speed | None:
    """Return the speed of MONAI's cache in memory, None where it is not installed."""
    try:
        from monai.data import CacheDataset
        from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged
    except ImportError:
        return None
    keys = list(MODALITIES)
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys, channel_dim="no_channel")]
    steps += [ScaleIntensityRanged(keys, 0, 255, 0.0, 1.0, clip=True)]
    return measure(lambda: torch_epochs(CacheDataset(files, Compose(steps), num_workers=workers, progress=False), 0))


# -------------------------------------------------------------------------------------------------------------- loaders


class Plain(Dataset):
    """Read a pair of files at each access, as a tutorial does."""

    def __init__(self, files: list[dict[str, str]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(decode(path))[None] / 255 for name, path in self.files[index].items()}


def decode(path: str) -> np.ndarray:
    """Return the pixels `(H, W)` of a file."""
    if path.endswith(".png"):
        return np.array(Image.open(path))
    return np.array(nibabel.load(path).dataobj)[:, :, 0]


def torch_epochs(dataset: Dataset, workers: int) -> Epoch:
    """Return epochs of a DataLoader, which keeps its workers."""
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, BATCH, True, num_workers=workers, generator=generator, persistent_workers=workers > 0)
    return lambda: iter(loader)


def folders(folder: Path) -> FoldersConfig:
    """Return the source of the files in `folder`."""
    slices = {"axis": 2, "keep": 0.0} if folder.name != "png" else None
    return FoldersConfig(
        root=str(folder), folders={m: m for m in MODALITIES}, slices=slices, geometry={"axes": None}, duplicates="keep"
    )


def shards(root: Path, suffix: str) -> ShardsConfig:
    """Return the source of the files with `suffix`, packed."""
    return ShardsConfig(root=str(root), folder=f"shards{suffix}")


def mandorla_epochs(config: FoldersConfig | ShardsConfig) -> Epoch:
    """Return epochs over all parts of a source, each in an order of its own, as a training fetches them."""
    splits = load_data(config, 0)
    epochs = iter(range(1 + EPOCHS))

    def epoch() -> Iterator[dict[str, Tensor]]:
        turn = next(epochs)
        for part in splits.parts.values():
            per_epoch = -(-len(part) // BATCH)
            for step in range(per_epoch):
                indices = batch_indices(turn, step, BATCH, len(part))[: len(part) - step * BATCH]
                yield part.batch(indices).x

    return epoch


# ------------------------------------------------------------------------------------------------- latents and training


def latents_per_second(folder: Path, num: int = 4000, shape: tuple[int, ...] = (8, 16, 16), rows: int = 512) -> float:
    """Return GB/s of random batches of cached latents, of two modalities, in shards of so many `rows`."""
    folder.mkdir()
    layout = Layout({SHARED: shape, **dict.fromkeys(MODALITIES, shape)})
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, num, rows)):
        records = np.zeros(min(rows, num - start), record(layout))
        for name in records.dtype.names:
            records[name] = rng.random(records[name].shape, np.float32)
        np.save(folder / f"train-{number:05d}.npy", records)
    part = LatentPart(folder, "train", layout, {"num": {"train": num}, "copies": 1, "rows": rows})
    batches = [rng.integers(0, num, 256) for _ in range(40)]
    part.batch(batches[0])
    begun = time.perf_counter()
    for indices in batches[1:]:
        part.batch(indices)
    num_values = 256 * (1 + 2 * len(MODALITIES)) * int(np.prod(shape))
    return 4 * num_values * (len(batches) - 1) / (time.perf_counter() - begun) / 1e9


def sources(root: Path, size: int) -> dict[str, str]:
    """Return the data of each training, as an override."""
    return {
        "folders of PNG": json.dumps(folders(root / "png").model_dump(mode="json")),
        "shards": json.dumps(shards(root, ".png").model_dump(mode="json")),
        "phantom, composed": json.dumps({"kind": "phantom", "size": [size, size], "num_val": 16, "num_test": 16}),
    }


class Waiting(ThreadPoolExecutor):
    """Note how long whoever asks for a result waits for it, and when it came."""

    waited: list[tuple[float, float]] = []

    def submit(self, fn, /, *args) -> Future:
        future = super().submit(fn, *args)
        result = future.result

        def timed() -> object:
            asked = time.perf_counter()
            value = result()
            self.waited.append((time.perf_counter() - asked, time.perf_counter()))
            return value

        future.result = timed
        return future


def waiting(run: Path, data: str, steps: int) -> tuple[float, float]:
    """Return the share of a step that stage 1 of the recipe `folders` waits for its batch, and a step's seconds."""
    changes = [
        f"vae.training.{key}={steps}" for key in ("steps", "validate_every", "checkpoint_every", "picture_every")
    ]
    recipe = read_recipe("folders", [f"run={json.dumps(str(run))}", f"data={data}", *changes])
    splits: Splits = load_data(recipe.data, recipe.seed)
    kept, mandorla.training.ThreadPoolExecutor = mandorla.training.ThreadPoolExecutor, Waiting
    Waiting.waited.clear()
    try:
        fit_vae(recipe, splits)
    finally:
        mandorla.training.ThreadPoolExecutor = kept
    skipped = min(5, steps // 3)  # the first steps warm up
    times = Waiting.waited[skipped:]
    whole = times[-1][1] - times[0][1]
    return sum(waited for waited, _ in times[1:]) / whole, whole / (len(times) - 1)


if __name__ == "__main__":
    sys.exit(main())
