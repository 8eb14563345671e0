#!/usr/bin/env python3
"""How long things take, and how that grows.

    python benchmarks/speed.py --part startup
    python benchmarks/speed.py --part growth

*startup*: seconds until `import mandorla` and `mandorla --help` are done, the median of `--repeats` new processes; the
same for peers, where the environment of `make peers` is there.

*growth*: milliseconds of a training step and the most memory of the process, against the number of modalities, the
pixels along an edge and the number of samples, one at a time around a middle. Data are random; each line is a process
of its own, on `--threads` threads. Where time is linear in what grows, the last column stays the same.

What counts is ratios within one run: other programs on the machine slow all lines alike.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
MIDDLE = {"modalities": 2, "size": 64, "samples": 1_000}
GROWTH = {"modalities": (2, 3, 5, 8), "size": (64, 128, 256), "samples": (1_000, 10_000, 100_000, 1_000_000)}
BATCH = {"vae": 8, "diffusion": 64}
SMALL = 16  # pixels along an edge of images whose latents are many
ROWS = 2**16  # in a file of the cache
WARM_UP, STEPS = 2, 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["startup", "growth"], default="startup")
    parser.add_argument("--repeats", type=int, default=5, help="of every start (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of every training (default: 1)")
    parser.add_argument("--stages", nargs="+", choices=list(BATCH), default=list(BATCH), help="of growth")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a line of growth, as JSON, in a process of its own
    asked = parser.parse_args(arguments)
    if asked.one:
        return print(json.dumps(measure_step(**json.loads(asked.one))))
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{os.cpu_count()} cores, load {load}")
    for line in startup(asked.repeats) if asked.part == "startup" else growth(asked.stages, asked.threads):
        print(line, flush=True)


def startup(repeats: int) -> Iterator[str]:
    """Yield the lines of a table of starts."""
    ours = [sys.executable, "-c", "import mandorla"]
    commands = {"import mandorla": ours, "mandorla --help": [sys.executable, "-m", "mandorla", "--help"]}
    if PEERS.is_file():
        commands |= {f"import {peer}": [str(PEERS), "-c", f"import {peer}"] for peer in ("monai", "multivae")}
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    yield "| start | seconds |\n|---|---|"
    for name, command in commands.items():
        yield f"| {name} | {median(seconds(command) for _ in range(repeats)):.2f} |"


def seconds(command: Sequence[str]) -> float:
    """Return how long a command takes. Raises CalledProcessError if it fails."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def growth(stages: Sequence[str], threads: int) -> Iterator[str]:
    """Yield the lines of a table of steps."""
    yield "| stage | what grows | to | ms per step | MiB | ms per unit of it |\n|---|---|---|---|---|---|"
    for stage in stages:
        for what, values in GROWTH.items():
            for value in values if (stage, what) != ("vae", "samples") else ():
                setting = {"stage": stage, "threads": threads, **MIDDLE, what: value}
                setting |= {"size": SMALL} if what == "samples" else {}
                command = [sys.executable, __file__, "--one", json.dumps(setting)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found = json.loads(out.splitlines()[-1])
                units = value**2 / 1e4 if what == "size" else value if what == "modalities" else 1
                yield (
                    f"| {stage} | {what} | {value:,} | {found['ms']:.0f} | {found['mib']:,.0f}"
                    f" | {found['ms'] / units:.1f} |"
                )


def measure_step(stage: str, threads: int, modalities: int, size: int, samples: int) -> dict[str, float]:
    """Return milliseconds of a training step, the median of a few, and the most MiB that this process took."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = (vae_step if stage == "vae" else diffusion_step)(modalities, size, samples)
    times = []
    for _ in range(WARM_UP + STEPS):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": 1e3 * median(times[WARM_UP:]), "mib": kib / 2**10}


def vae_step(modalities: int, size: int, samples: int) -> Callable[[], None]:
    """Return a step of stage 1 with maps, on random images."""
    import torch

    from mandorla.data.dataset import Batch, Modality, all_present
    from mandorla.recipe import read_recipe
    from mandorla.vae.model import VAE
    from mandorla.vae.objective import Objective

    config = read_recipe("phantom", []).vae
    named = tuple(Modality(f"m{k}", 1, (size, size)) for k in range(modalities))
    objective = Objective(VAE(config.model, named), config.loss).to(memory_format=torch.channels_last)
    x = {m.name: torch.rand(BATCH["vae"], *m.shape) for m in named}
    return optimise(objective, lambda: objective(Batch(x, all_present(x)))[0])


def diffusion_step(modalities: int, size: int, samples: int) -> Callable[[], None]:
    """Return a step of stage 2 on maps, of images of that size, read from a cache of so many samples on disk."""
    import numpy as np
    import torch

    from mandorla.diffusion.model import Diffusion
    from mandorla.latents import SHARED, Layout
    from mandorla.recipe import read_recipe
    from mandorla.training import batch_indices
    from mandorla.vae.latent_cache import LatentPart, record

    recipe = read_recipe("phantom", [])
    model = recipe.vae.model
    private = {f"m{k}": model.private.shape((size, size)) for k in range(modalities)}
    layout = Layout({SHARED: model.shared.shape((size, size)), **private})
    diffusion, steps = Diffusion(recipe.diffusion, layout), iter(range(WARM_UP + STEPS))
    records = np.zeros(min(samples, ROWS), record(layout))
    records["present"] = True
    folder = tempfile.TemporaryDirectory()
    for number, start in enumerate(range(0, samples, ROWS)):
        np.save(Path(folder.name) / f"train-{number:05d}.npy", records[: samples - start])
    part = LatentPart(Path(folder.name), "train", layout, {"num": {"train": samples}, "rows": ROWS})

    def loss() -> torch.Tensor:
        encoded = part.batch(batch_indices(0, next(steps), BATCH["diffusion"], samples))
        return diffusion.loss(encoded.draw(), encoded.given)[0]

    step = optimise(diffusion, loss)
    step.folder = folder  # which is removed with the step
    return step


def optimise(module, loss: Callable) -> Callable[[], None]:
    """Return a step that descends `loss()` in bfloat16."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
