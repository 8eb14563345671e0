"""The whole path on bundled data: train both stages, generate, evaluate, report.

Two parts, each a run of its own: `polydigits` (what is shared is a class, latents are vectors) in the run folder
itself, `phantom` (what is shared is an anatomy, latents are maps) in the folder `phantom` inside it. Networks this
small gain nothing from a second thread, so the parts run side by side, each with half of the cores.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.evaluate.run import evaluate
from mandorla.recipe import Recipe, read_recipe
from mandorla.vae.training import train_vae

PARTS = {"polydigits": ".", "phantom": "phantom"}
LOG = "demo.log"


def run_demo(run: Path, seed: int, overrides: Sequence[str] = (), part: str = "both") -> None:
    """Train and evaluate "polydigits", "phantom" or "both"; the same call again goes on where it stopped.

    `overrides` apply to both parts.
    """
    if part != "both":
        return run_part(part, run, seed, overrides)
    for name in PARTS:  # before anything is written
        _recipe(name, run, seed, overrides)
    console, began = Console(markup=False), time.perf_counter()
    threads = max(1, (os.cpu_count() or 2) // 2)
    folder = run / PARTS["phantom"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mandorla", "demo", *overrides, "--part=phantom", f"--run={run}", f"--seed={seed}"]
    with (folder / LOG).open("w") as log:
        phantom = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
        )
    try:
        torch.set_num_threads(threads)
        run_part("polydigits", run, seed, overrides)
        with console.status("the other half of the demo, phantom, ends"):
            status = phantom.wait()
    finally:
        phantom.terminate()
    text = (folder / LOG).read_text()
    if status:
        raise MandorlaError(f"the demo's phantom part failed, see {folder / LOG}: {text.strip().splitlines()[-1]}")
    console.print(text[text.index("── phantom") :] if "── phantom" in text else text, highlight=False, soft_wrap=True)
    for part in PARTS.values():
        console.print(f"report: {run / part / 'report.html'}", soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} seconds in all")


def run_part(part: str, run: Path, seed: int, overrides: Sequence[str] = ()) -> None:
    """Train and evaluate one part, "polydigits" or "phantom", of the demo in `run`."""
    recipe = _recipe(part, run, seed, overrides)
    Console().rule(f"{part}, seed {seed}")
    train_vae(recipe)
    train_diffusion(recipe)
    evaluate(recipe.run)


def _recipe(part: str, run: Path, seed: int, overrides: Sequence[str]) -> Recipe:
    return read_recipe(part, [f"run={json.dumps(str(run / PARTS[part]))}", f"seed={seed}", *overrides])
