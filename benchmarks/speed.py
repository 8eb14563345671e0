#!/usr/bin/env python3
"""How long things take, and how that grows.

    make bench                                 # all parts into experiments/SPEED.md
    python benchmarks/speed.py --part startup

*startup*: seconds until `import mandorla` and `mandorla --help` are done, the median of `--repeats` new processes; the
same for peers, where the environment of `make peers` is there.

*stage1*, *stage2*: a training step of ours and of peers (`benchmarks/peers/steps.py`), each in a process of its own on
`--threads` threads, which take steps in turns; the same images, as many parameters within a twentieth, bfloat16 where a
peer does not say otherwise. The median over rounds, and of the ratio to ours the median and the quartiles. A step of
our stage 1 is the mean of ten, spread over a training: in its first part (`vae.loss.agreement_first`) nothing is
decoded.

*sampling*: tuples of the recipe `lgg`, by ours as it samples and by the latent diffusion on stacked contrasts of
`benchmarks/peers.py`, untrained: PEERS.md says how near to real ones those are that they draw once trained.

*growth*: milliseconds of a training step and the most memory of the process, against the number of modalities, the
pixels along an edge and the number of samples, one at a time around a middle. Data are random; each line is a process
of its own, on `--threads` threads. Where time is linear in what grows, the last column stays the same.

*processes*: a step of `mandorla train` by one process and by two that share each batch, of the recipe `phantom` on
images as large as in the other parts, on `--threads` threads each: a training of many steps less one of few, over the
steps between. Where cores are free, two take half as long at best.

What counts is ratios within one run: other programs on the machine slow all lines alike.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import count as count_from
from itertools import cycle, product
from pathlib import Path
from statistics import median, quantiles

from sections import write_section

from mandorla.environment import commit, processor
from mandorla.tables import markdown_head, markdown_row

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
STEPS_OF_PEERS = ROOT / "benchmarks" / "peers" / "steps.py"
TABLES = ROOT / "experiments" / "SPEED.md"
PARTS = ("startup", "stage1", "stage2", "sampling", "growth", "processes")
MIDDLE = {"modalities": 2, "size": 64, "samples": 1_000}
GROWTH = {"modalities": (2, 3, 5, 8), "size": (64, 128, 256), "samples": (1_000, 10_000, 100_000, 1_000_000)}
BATCH = {"vae": 8, "diffusion": 64}
SMALL = 16  # pixels along an edge of images whose latents are many
ROWS = 2**16  # in a file of the cache
SHARED_BY = [("vae", 256, (3, 13)), ("diffusion", 256, (5, 25))]  # stage, batch, steps of two trainings
WARM_UP, MEASURED = 2, 5
SPREAD = 10  # steps of stage 1 over a training, of which the mean is taken
Step = Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="default: all of them")
    parser.add_argument("--repeats", type=int, default=7, help="of every start and of every turn (default: 7)")
    parser.add_argument("--write", action="store_true", help="the sections of these parts into experiments/SPEED.md")
    parser.add_argument("--threads", type=int, default=1, help="of every training (default: 1)")
    parser.add_argument("--stages", nargs="+", choices=list(BATCH), default=list(BATCH), help="of growth")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a line of growth, as JSON, in a process of its own
    parser.add_argument("--steps", help=argparse.SUPPRESS)  # whose steps to take when asked, as JSON
    asked = parser.parse_args(arguments)
    if asked.one:
        return print(json.dumps(measure_step(**json.loads(asked.one))))
    if asked.steps:
        return take_steps(**json.loads(asked.steps))
    tables = {
        "startup": lambda: startup(asked.repeats),
        "stage1": lambda: turns(STAGE_1, asked.repeats, asked.threads),
        "stage2": lambda: turns(STAGE_2, asked.repeats, asked.threads),
        "sampling": lambda: turns(SAMPLING, asked.repeats, asked.threads),
        "growth": lambda: growth(asked.stages, asked.threads),
        "processes": lambda: processes(min(asked.repeats, 3), asked.threads),
    }
    made = f"Made by `{shlex.join(['python', 'benchmarks/speed.py', *sys.argv[1:]])}`. {machine()}\n"
    for part in asked.part:
        text = [made]
        print(f"## {part}\n", flush=True)
        for line in tables[part]():
            print(line, flush=True)
            text.append(line)
        if asked.write:
            write_section(TABLES, part, "\n".join(text), "# Speed\n")


def machine() -> str:
    """Return what this was measured on, in a sentence."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return f"{processor()}, no GPU used, load at the start {load}; {versions()}; commit {commit() or 'unknown'}."


def versions() -> str:
    """Return which torch ours runs on, and which that of the peers, with their versions."""
    found = [f"torch {version('torch')}"]
    if PEERS.is_file():
        names = ("torch", "monai", "multivae")
        ask = f"from importlib.metadata import version; print(*map(version, {names}))"
        out = subprocess.run([PEERS, "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append("peers: " + ", ".join(" ".join(pair) for pair in zip(names, out.split(), strict=True)))
    return "; ".join(found)


# ------------------------------------------------------------------------------------------------------ ours and peers

MAPS = {"modalities": 2, "size": 64}
VIEWS = {"size": 32, "batch": 64}
STAGE_1 = [
    ({"what": "vae", "batch": 8} | MAPS, ["autoencoder-kl"]),
    ({"what": "views", "modalities": 3} | VIEWS, ["mmvae+"]),
    ({"what": "views", "modalities": 5} | VIEWS, ["mmvae+"]),
]
STAGE_2 = [({"what": "diffusion", "batch": 32} | MAPS, ["unet-cached", "unet-images"])]
SAMPLING = [({"what": "tuples", "modalities": 3, "size": 64, "batch": 4}, ["ddim-50", "ddim-1000"])]


def turns(comparisons: Sequence[tuple[dict, Sequence[str]]], repeats: int, threads: int) -> Iterator[str]:
    """Yield the lines of a table of steps of ours and of peers."""
    if not PEERS.is_file():
        raise SystemExit(f"error: the peers' environment {PEERS.parents[1].name} is missing: run `make peers`")
    yield from markdown_head(["step of", "modalities", "batch", "parameters", "ms", "times ours", "quartiles"])
    for setting, peers in comparisons:
        setting = setting | {"threads": threads}
        ours = Worker([sys.executable, __file__, "--steps"], setting)
        known = {"parameters": ours.built["parameters"], "autoencoder": ours.built.get("vae", 0)}
        known |= {"network": ours.built["network"]}
        workers = {setting["what"]: ours}
        workers |= {peer: Worker([str(PEERS), str(STEPS_OF_PEERS)], setting | known | {"what": peer}) for peer in peers}
        seconds = {name: [] for name in workers}
        for _ in range(WARM_UP + repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.step())
        seconds = {name: of[WARM_UP:] for name, of in seconds.items()}
        for name, worker in workers.items():
            ratios = [theirs / own for theirs, own in zip(seconds[name], seconds[setting["what"]], strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            title = f"ours, {name}" if worker is ours else name
            what = (title, setting["modalities"], setting["batch"], f"{worker.built['parameters']:,}")
            took = (f"{1e3 * median(seconds[name]):.0f}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}")
            yield markdown_row([*what, *took])
            worker.end()


class Worker:
    """A process that takes a training step when it is asked to; `built` is what it says of its model."""

    def __init__(self, command: Sequence[str], setting: dict):
        self.process = subprocess.Popen(
            [*command, json.dumps(setting)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.built = json.loads(self._line())

    def step(self) -> float:
        """Return how many seconds a step took."""
        print(file=self.process.stdin, flush=True)
        return float(self._line()) / self.built.get("steps", 1)

    def end(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        if line := self.process.stdout.readline():
            return line
        raise SystemExit(f"error: {' '.join(map(str, self.process.args))} ended with status {self.process.wait()}")


def take_steps(what: str, threads: int, modalities: int, size: int, batch: int) -> None:
    """Build ours, say so, and take a step for each line that is read."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step, facts = STEPS[what](modalities, size, batch)
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        print(time.perf_counter() - begun, flush=True)


def startup(repeats: int) -> Iterator[str]:
    """Yield the lines of a table of starts."""
    ours = [sys.executable, "-c", "import mandorla"]
    commands = {"import mandorla": ours, "mandorla --help": [sys.executable, "-m", "mandorla", "--help"]}
    if PEERS.is_file():
        commands |= {f"import {peer}": [str(PEERS), "-c", f"import {peer}"] for peer in ("monai", "multivae")}
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    yield from markdown_head(["start", "seconds"])
    for name, command in commands.items():
        yield markdown_row([name, f"{median(seconds(command) for _ in range(repeats)):.2f}"])


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Return how long a command takes; what it says last ends this program if it fails."""
    begun = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {ended.returncode}:\n{ended.stdout[-2000:]}")
    return time.perf_counter() - begun


def growth(stages: Sequence[str], threads: int) -> Iterator[str]:
    """Yield the lines of a table of steps."""
    yield from markdown_head(["stage", "what grows", "to", "ms per step", "MiB", "ms per unit of it"])
    for stage in stages:
        for what, values in GROWTH.items():
            for value in values if (stage, what) != ("vae", "samples") else ():
                setting = {"stage": stage, "threads": threads, **MIDDLE, what: value}
                setting |= {"size": SMALL} if what == "samples" else {}
                command = [sys.executable, __file__, "--one", json.dumps(setting)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found = json.loads(out.splitlines()[-1])
                units = value**2 / 1e4 if what == "size" else value if what == "modalities" else 1
                took = (f"{found['ms']:.0f}", f"{found['mib']:,.0f}", f"{found['ms'] / units:.1f}")
                yield markdown_row([stage, what, f"{value:,}", *took])


def processes(repeats: int, threads: int) -> Iterator[str]:
    """Yield the lines of a table of trainings by one process and by two."""
    yield from markdown_head(["stage", "batch", "processes", "ms per step", "times one process"])
    for stage, batch, lengths in SHARED_BY:
        found: dict[int, list[float]] = {1: [], 2: []}
        for _, num in product(range(repeats), found):
            with tempfile.TemporaryDirectory() as folder:
                few, many = (train(Path(folder) / str(steps), stage, batch, steps, num, threads) for steps in lengths)
            found[num].append((many - few) / (lengths[1] - lengths[0]))
        for num, times in found.items():
            ratio = median(found[1]) / median(times)
            yield markdown_row([stage, batch, num, f"{1e3 * median(times):.0f}", f"{ratio:.2f}"])


def train(run: Path, stage: str, batch: int, steps: int, processes: int, threads: int) -> float:
    """Return how many seconds so many steps of a stage take in the new folder `run`, starts and all else included."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def command(stage: str, steps: int, *keys: str) -> list[str]:
        data = [f"data.size={[MIDDLE['size']] * 2}", "data.num_train=600"]
        given = ["phantom", f"run={json.dumps(str(run))}", *data] if stage == "vae" else [str(run)]
        keys += tuple(f"{stage}.training.{key}={steps}" for key in ("steps", "validate_every", "picture_every"))
        return [sys.executable, "-m", "mandorla", "train", stage, *given, *keys]

    if stage != "vae":
        seconds(command("vae", 1), environment)
    more = f"{stage}.training.batch_size={batch}", f"trainer.devices={processes}"
    return seconds(command(stage, steps, *more), environment)


def measure_step(stage: str, threads: int, modalities: int, size: int, samples: int) -> dict[str, float]:
    """Return milliseconds of a training step, the median of a few, and the most MiB that this process took."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step, facts = STEPS[stage](modalities, size, BATCH[stage], samples)
    times = []
    for _ in range(WARM_UP + MEASURED):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": 1e3 * median(times[WARM_UP:]) / facts.get("steps", 1), "mib": kib / 2**10}


def vae_step(modalities: int, size: int, batch: int, samples: int = 0) -> tuple[Step, dict]:
    """Return a step of stage 1 with maps, on random images, and facts about it."""
    return _stage_1("phantom", modalities, (1, size, size), batch)


def views_step(modalities: int, size: int, batch: int, samples: int = 0) -> tuple[Step, dict]:
    """Return a step of stage 1 with vectors, on random coloured images, and facts about it."""
    return _stage_1("polymnist-quadrant-mini", modalities, (3, size, size), batch)


def _stage_1(recipe: str, modalities: int, shape: tuple[int, ...], batch: int) -> tuple[Step, dict]:
    import torch

    from mandorla.data.dataset import Batch, all_present
    from mandorla.recipe import read_recipe
    from mandorla.vae.model import VAE
    from mandorla.vae.objective import Objective

    config = read_recipe(recipe).vae
    named = named_modalities(modalities, shape)
    objective = Objective(VAE(config.model, named), config.loss).to(memory_format=torch.channels_last)
    x = {m.name: torch.rand(batch, *m.shape) for m in named}
    network = config.model.encoder_decoder.model_dump(mode="json")
    facts = {"parameters": count(objective.vae), "network": network, "steps": SPREAD}
    paired, ways = Batch(x, all_present(x)), cycle((k + 0.5) / SPREAD for k in range(SPREAD))
    one = optimise(objective, lambda: objective(paired, next(ways))[0])

    def step() -> None:
        for _ in range(SPREAD):
            one()

    return step, facts


def diffusion_step(modalities: int, size: int, batch: int, samples: int = 1_000) -> tuple[Step, dict]:
    """Return a step of stage 2 on maps of images of that size, read from a cache of so many samples, and facts."""
    import numpy as np

    from mandorla.diffusion.model import Diffusion
    from mandorla.latent_cache import LatentPart, record
    from mandorla.recipe import read_recipe
    from mandorla.training import batch_indices
    from mandorla.vae.model import VAE

    recipe = read_recipe("phantom")
    vae = VAE(recipe.vae.model, named_modalities(modalities, (1, size, size)))
    diffusion, numbers = Diffusion(recipe.diffusion, vae.layout), count_from(0)
    records = np.zeros(min(samples, ROWS), record(vae.layout))
    records["present"] = True
    folder = tempfile.TemporaryDirectory()
    for number, start in enumerate(range(0, samples, ROWS)):
        np.save(Path(folder.name) / f"train-{number:05d}.npy", records[: samples - start])
    part = LatentPart(Path(folder.name), "train", vae.layout, {"num": {"train": samples}, "copies": 1, "rows": ROWS})

    def loss():
        encoded = part.batch(batch_indices(0, next(numbers), batch, samples))
        return diffusion.loss(encoded.draw(), encoded.given)[0]

    step = optimise(diffusion, loss)
    step.folder = folder  # which is removed with the step
    return step, {"parameters": count(diffusion), "vae": count(vae), "network": {}}


def tuples_step(modalities: int, size: int, batch: int, samples: int = 0) -> tuple[Step, dict]:
    """Return what draws tuples of images as the recipe `lgg` does, and facts about it."""
    import torch

    from mandorla.diffusion.model import Diffusion
    from mandorla.latents import Latents
    from mandorla.recipe import read_recipe
    from mandorla.vae.model import VAE

    recipe = read_recipe("lgg")
    vae = VAE(recipe.vae.model, named_modalities(modalities, (1, size, size))).eval()
    diffusion = Diffusion(recipe.diffusion, vae.layout).eval()

    @torch.no_grad()
    def step() -> None:
        noise = {name: torch.randn(batch, *shape) for name, shape in vae.layout.shapes.items()}
        drawn = Latents.of(diffusion.generate(noise, {}, list(noise), recipe.diffusion.sampling))
        for name, u in drawn.private.items():
            vae.decode(name, drawn.shared, u)

    return step, {"parameters": count(vae) + count(diffusion), "network": {}}


STEPS = {"vae": vae_step, "views": views_step, "diffusion": diffusion_step, "tuples": tuples_step}


def named_modalities(num: int, shape: tuple[int, ...]):
    """Return so many modalities of one `shape` (channels, *size)."""
    from mandorla.data.dataset import Modality

    return tuple(Modality(f"m{k}", shape[0], shape[1:]) for k in range(num))


def count(module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def optimise(module, loss: Callable) -> Step:
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
