#!/usr/bin/env python3
"""Ours beside its peers: trained for the same minutes on the same data, measured by the same judges.

    make peers                                                        # once: the environment that the peers live in
    python benchmarks/peers.py polymnist-quadrant-mini --minutes 10
    python benchmarks/peers.py lgg --minutes 20 vae.training.steps=3000 diffusion.training.steps=1200
    python benchmarks/peers.py lgg --models mandorla,unet,unet-per-route --seeds 0,1,2

Writes the table of the recipe, the best figure of each row in bold, into `experiments/PEERS.md`. Where samples have a
class that all modalities share, the question is what codes know and whether views belong together; where they have
none, how near translations are to the truth. What a model cannot do leaves a cell empty.

Steps of ours are scaled to the minutes; what a recipe, or the command, gives both stages says how they share them.

The models are the scripts in `benchmarks/peers/`, each a process of its own on `--threads` threads, one after another;
`benchmarks/peers/task.py` says what they are asked and what they answer. Answers stay in `runs/peers`: what was asked
before is not trained again.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from peers_figures import Truth
from sections import write_section

from mandorla.config import dump
from mandorla.data.dataset import Dataset
from mandorla.data.root import RootedConfig
from mandorla.environment import commit, processor
from mandorla.errors import MandorlaError
from mandorla.evaluate.record import Record
from mandorla.evaluate.table import Runs, best_of, figures_table, side_by_side
from mandorla.recipe import Recipe, read_recipe
from mandorla.storage import locked, read_json, write_text
from mandorla.tables import markdown_head, markdown_row

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().parent / "peers"
ENVIRONMENT = ROOT / ".venv-peers"
TABLES = ROOT / "experiments" / "PEERS.md"
ASKED, REPORT, LOG = "settings.json", "report.json", "log.txt"
OURS = "mandorla"
INTRODUCTION = """# Peers

Made by `benchmarks/peers.py`. All models saw the same training images for the same minutes of computing on one machine,
one after another; what they answered was measured by the same functions and judges. Equal minutes show what a user gets
for the same wait; they under-train who starts slowly. Losses, likelihoods, latent sizes, batches and optimisers of
peers are their authors' (`benchmarks/peers/`), their networks about as large as ours, all in bfloat16 as ours; images
are mirrored for peers where they are for ours. Ours averages its weights over the last steps, peers do not.

A figure alone can be won by doing nothing: a private part that holds nothing leaks no class; see what it holds beside
it. An empty cell: the model has no such part. `joint/agreement mixture` is of codes drawn from a mixture of Gaussians
instead: ours from one of 20 over all codes, MultiVae's from its own sampler, one of 10 for each code; `mixed` are views
of different tuples: who always says the same agrees there too.
"""
_CHUNK = 1000  # samples that are written at once


@dataclass(frozen=True)
class Model:
    """Say which script in `peers/` trains a model, on which kind of data, and where that script runs.

    One that is `stacked` takes modalities side by side as channels.
    """

    script: str
    classes: bool = False
    routes: bool = False
    stacked: bool = False
    python: Path = ENVIRONMENT / "bin" / "python"
    by_default: bool = True


MODELS = {
    OURS: Model("ours.py", classes=True, routes=True, python=Path(sys.executable)),
    "mmvae+": Model("multivae_models.py", classes=True),
    "dmvae": Model("multivae_models.py", classes=True),
    "mopoe": Model("multivae_models.py", classes=True),
    "mvtcae": Model("multivae_models.py", classes=True),
    "unet": Model("unet.py", routes=True, stacked=True),
    "unet-per-route": Model("unet.py", routes=True, stacked=True, by_default=False),
    "latent-diffusion": Model("latent_diffusion.py", classes=True, routes=True, stacked=True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe of ours, which names the data and what is measured")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the recipe")
    parser.add_argument("--models", default="", help=f"some of {', '.join(MODELS)}; default: all that fit the data")
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each model (default: 10)")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2: one training of each model for every seed")
    parser.add_argument("--threads", type=int, default=1, help="of each training (default: 1)")
    parser.add_argument("--title", help="of the section to write; by default the recipe's name")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers", help="folder of data and answers")
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser.parse_intermixed_args(given)
    try:
        if not re.fullmatch(r"\d+(,\d+)*", asked.seeds):
            raise MandorlaError(f"--seeds takes whole numbers such as 0,1,2, not {asked.seeds!r}")
        if asked.minutes <= 0 or asked.threads < 1:
            raise MandorlaError("--minutes and --threads must be above zero")
        compare(asked, given)
    except MandorlaError as error:
        sys.exit(f"error: {error}")


def compare(asked: argparse.Namespace, given: Sequence[str]) -> None:
    """Train and measure all models with all seeds, and write the table.

    Raises MandorlaError where models and data do not fit, the peers' environment is missing, or a training fails.
    """
    torch.set_num_threads(asked.threads)
    stem = Path(asked.recipe).stem
    columns: dict[str, list[list[Record]]] = {}
    reports: dict[str, list[dict]] = {}
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    for seed in seeds:
        recipe = read_recipe(asked.recipe, [*asked.overrides, f"seed={seed}"])
        truth = Truth(recipe, asked.out.resolve() / stem / f"seed{seed}")
        found = {}
        for name in chosen_models(list(filter(None, asked.models.split(","))), truth):
            answer = ask(truth, name, asked.minutes, asked.threads)
            reports.setdefault(name, []).append(read_json(answer / REPORT))
            found |= truth.measure(name, answer)
        for column, records in (found | truth.measure_simple()).items():
            columns.setdefault(column, []).append(records)
    command = shlex.join(["python", "benchmarks/peers.py", *given])
    parts = [about(command, seeds, truth), reports_table(reports), figures_table(columns), verdict(columns)]
    section = "\n".join(parts)
    print(section)
    write_section(TABLES, asked.title or stem, section, INTRODUCTION)


def chosen_models(names: Sequence[str], truth: Truth) -> list[str]:
    """Return the models to train, all that fit where none are named.

    Raises MandorlaError where one does not fit the data or is not installed.
    """
    fitting = [name for name, model in MODELS.items() if (model.classes if truth.classes else model.routes)]
    fitting = [name for name in fitting if truth.one_size or not MODELS[name].stacked]
    if unfit := [name for name in names if name not in fitting]:
        raise MandorlaError(f"{unfit[0]} is no model for this data: --models takes {', '.join(fitting)}")
    chosen = names or [name for name in fitting if MODELS[name].by_default]
    if missing := [name for name in chosen if not MODELS[name].python.is_file()]:
        raise MandorlaError(f"{missing[0]}: the peers' environment {ENVIRONMENT.name} is missing: run `make peers`")
    return chosen


def ask(truth: Truth, name: str, minutes: float, threads: int) -> Path:
    """Return the folder with what a model answers; it is trained unless the same was asked before.

    Raises MandorlaError where it fails.
    """
    folder, model = truth.folder / name, MODELS[name]
    asked = {
        "model": name,
        "seed": truth.seed,
        "minutes": minutes,
        "threads": threads,
        "num_samples": truth.settings.num_samples,
        "num_generated": truth.settings.num_generated,
        "modalities": {modality.name: list(modality.shape) for modality in truth.splits.modalities},
        "routes": [list(route) for route in truth.routes],
        "networks": {name: network.model_dump(mode="json") for name, network in truth.networks.items()},
        "flip": list(truth.flip),
        "data": write_data(truth),
    }
    config = dump(settled(truth.recipe))
    asked |= {"recipe": config} if name == OURS else {}
    if (folder / REPORT).is_file() and read_json(folder / ASKED) == asked:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_text(folder / ASKED, json.dumps(asked, indent=1))
    write_text(folder / "recipe.yaml", config)
    print(f"{name}, seed {truth.seed}: {minutes:g} minutes", flush=True)
    with locked(folder), (folder / LOG).open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            [model.python, SCRIPTS / model.script, folder],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    if not (folder / REPORT).is_file():
        lines = (folder / LOG).read_text(encoding="utf-8").strip().splitlines() or ["no word"]
        raise MandorlaError(f"{name} ended with status {ended.returncode} ({lines[-1].strip()}): see {folder / LOG}")
    return folder


def settled(recipe: Recipe) -> Recipe:
    """Return the recipe as it can be read from any folder."""
    data = recipe.data
    return recipe.model_copy(update={"data": data.settle() if isinstance(data, RootedConfig) else data})


def write_data(truth: Truth) -> str:
    """Write the images that models are shown, unless they are there, and return a hash of them."""
    folder = truth.folder / "data"
    numbers = {part: len(rows) for part, (_, rows) in truth.parts.items()}
    what = {"contents": truth.splits.fingerprint, "seed": truth.seed, "samples": numbers}
    digest = sha256(json.dumps(what).encode()).hexdigest()
    if not (folder / digest).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        for part, (dataset, rows) in truth.parts.items():
            (folder / part).mkdir(parents=True)
            if not write_images(folder / part, dataset, rows, np.uint8):
                write_images(folder / part, dataset, rows, np.float32)
        np.save(folder / "donor.npy", truth.donor)
        write_text(folder / digest, json.dumps(what))
    return digest


def write_images(folder: Path, dataset: Dataset, rows: np.ndarray, kind: type) -> bool:
    """Write samples as one array per modality, of bytes or of floats; return whether bytes hold them, or give up.

    Raises MandorlaError if a sample lacks a modality.
    """
    arrays = {
        m.name: np.lib.format.open_memmap(folder / f"{m.name}.npy", "w+", kind, (len(rows), *m.shape))
        for m in dataset.modalities
    }
    for start in range(0, len(rows), _CHUNK):
        batch = dataset.batch(rows[start : start + _CHUNK])
        for name, x in batch.x.items():
            if not batch.present[name].all():
                raise MandorlaError(f"a sample has no {name}, and peers need all: leave out what is incomplete")
            values = x.numpy()
            stored = np.rint(255 * values).astype(np.uint8) if kind is np.uint8 else values
            if kind is np.uint8 and not np.allclose(stored / np.float32(255), values, atol=1e-6, rtol=0):
                return False
            arrays[name][start : start + len(values)] = stored
    return True


# ------------------------------------------------------------------------------------------------------ what is written


def about(command: str, seeds: Sequence[int], truth: Truth) -> str:
    """Return what was done, in words."""
    shapes = {"x".join(map(str, modality.shape)) for modality in truth.splits.modalities}
    data = f"{len(truth.splits.train)} training samples of {len(truth.names)} modalities ({', '.join(sorted(shapes))})"
    runs = f"{len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else "one seed"
    machine = f"{processor()}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}"
    return f"`{command}`, commit {commit() or 'unknown'}; {machine}; {data}; {runs}. Best of each row in bold.\n"


def reports_table(reports: Mapping[str, Sequence[dict]]) -> str:
    """Return a table of what each training took."""
    lines = markdown_head(["model", "minutes", "on the clock", "steps", "parameters", "how"])
    for name, of in reports.items():
        spent, on_clock, steps = (
            mean(report[key] for report in of) for key in ("minutes", "minutes_on_clock", "steps")
        )
        size = f"{of[0]['parameters'] / 1e6:.2f} M"
        lines.append(markdown_row([name, f"{spent:.1f}", f"{on_clock:.1f}", f"{steps:.0f}", size, of[0]["how"]]))
    return "\n".join(lines) + "\n"


def verdict(columns: Mapping[str, Runs]) -> str:
    """Say in which figures somebody else is ahead of ours, nothing where there is nobody else or not ours."""
    ours = {name for name in columns if name.split(",")[0] == OURS}
    if not ours or ours == set(columns):
        return ""
    best = {figure: best_of(cells) for figure, cells in side_by_side(columns) if any(cells[name] for name in ours)}
    behind = [f"{figure} ({', '.join(of)})" for figure, of in best.items() if of and not ours & set(of)]
    count = sum(map(bool, best.values()))
    text = f"{OURS} is best in {count - len(behind)} of {count} rows that differ."
    return f"{text} Others are ahead in {'; '.join(behind)}.\n" if behind else f"{text}\n"


if __name__ == "__main__":
    main()
