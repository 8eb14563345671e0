#!/usr/bin/env python3
"""How long `mandorla translate` takes for volumes, and how much memory, with the slice model of `open-ms`.

    python benchmarks/translate.py [--files 1,4,16] [--shape 182,218,182] [--steps 8] [--num-samples 1] [--run RUN]

The command runs as a user types it, in a process of its own, for folders of so many pairs of volumes (T1 and FLAIR are
given, T2 is wanted). Printed are seconds of the clock and of the processor, from start to end, and the most memory that
the process held: it should not grow with the number of files.

The volumes are made up: an ellipsoid of the size of a brain, smooth, with noise, float32 as open-ms has them. The model
is that of the recipe, trained for two steps on such volumes, for speed does not depend on what it has learned; --run
takes a trained one. The clock means something on free cores alone: load is printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy.ndimage import zoom

from mandorla.diffusion.training import train_diffusion
from mandorla.recipe import read_recipe
from mandorla.vae.training import train_vae

SUFFIXES = {"t1": "T1w", "t1gd": "T1wGd", "t2": "T2w", "flair": "FLAIR"}  # as the recipe names its files
GIVEN, WANTED = ("t1", "flair"), "t2"
SUBJECTS = 3  # the least that can be divided into three parts


class Cost(NamedTuple):
    """Hold what a command took: `seconds` of the clock, `processor` seconds, and the most memory at once, in MiB."""

    seconds: float
    processor: float
    memory: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="1,4,16", help="numbers of pairs of volumes")
    parser.add_argument("--shape", default="182,218,182", help="voxels")
    parser.add_argument("--steps", type=int, default=8, help="steps of the sampler")
    parser.add_argument("--num-samples", type=int, default=1, help="draws per volume")
    parser.add_argument("--run", type=Path, help="run folder of a trained model of t1, flair and t2")
    settings = parser.parse_args(arguments)
    shape = tuple(map(int, settings.shape.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_subjects(root / "open_ms", shape)
        run = settings.run or train(root)
        print(f"{settings.shape.replace(',', 'x')} voxels, {settings.steps} steps, {settings.num_samples} draw(s)")
        for number in map(int, settings.files.split(",")):
            source = root / f"in{number}"
            link_pairs(root / "open_ms" / "sub-00", source, number)
            load = os.getloadavg()[0]
            cost = measure(
                ["translate", run, source, root / f"out{number}", "--given", ",".join(GIVEN), "--wanted", WANTED]
                + ["--steps", settings.steps, "--num-samples", settings.num_samples]
            )
            print(
                f"{number:4} pair(s): {cost.seconds:7.1f} s by the clock (load before {load:.1f} on {os.cpu_count()}"
                f" cores), {cost.processor:7.1f} s of processor, {cost.processor / number:6.1f} each, at most"
                f" {cost.memory:6.0f} MiB"
            )


def write_subjects(folder: Path, shape: tuple[int, ...]) -> None:
    """Write volumes of the four modalities of open-ms for a few made-up subjects."""
    axes = np.ogrid[tuple(slice(-1.0, 1.0, complex(0, n)) for n in shape)]
    brain = sum(np.square(axis) for axis in axes) < 0.75
    affine = np.diag([-1.0, 1, 1, 1])  # as open-ms: axes that lead left, forward and up
    for subject in range(SUBJECTS):
        rng = np.random.default_rng(subject)
        coarse = rng.random((8, 8, 8))
        tissue = zoom(coarse, [n / 8 for n in shape], order=1, grid_mode=True, mode="nearest")
        for number, suffix in enumerate(SUFFIXES.values()):
            values = 200 * np.abs(tissue - number / 4) + 20 * rng.random(shape)
            path = folder / f"sub-{subject:02d}" / f"sub-{subject:02d}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image((values * brain).astype(np.float32), affine), path)


def train(root: Path) -> Path:
    """Train both stages of the recipe for two steps on what lies in `root`; return the run folder."""
    changes = [f"run={json.dumps(str(root / 'run'))}", f"data.root={json.dumps(str(root))}"]
    for stage in ("vae", "diffusion"):
        for key in ("steps", "validate_every", "checkpoint_every", "picture_every"):
            changes.append(f"{stage}.training.{key}=2")
    recipe = read_recipe("open-ms", changes)
    train_vae(recipe)
    train_diffusion(recipe)
    return Path(recipe.run)


def link_pairs(subject: Path, folder: Path, number: int) -> None:
    """Make a folder of `number` inputs, which are all links to the volumes of one subject."""
    for name in GIVEN:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            os.link(next(subject.glob(f"*_{SUFFIXES[name]}.nii.gz")), folder / name / f"{index:03d}.nii.gz")


def measure(arguments: Sequence[object]) -> Cost:
    """Return what a `mandorla` command takes. Raises `CalledProcessError` if it fails."""
    command = [sys.executable, "-m", "mandorla", *map(str, arguments)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of what is called a resident set
    return Cost(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


if __name__ == "__main__":
    sys.exit(main())
