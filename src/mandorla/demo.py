"""The whole path on bundled data: train both stages, generate, evaluate, report.

Two runs: `polydigits` (what is shared is a class, latents are vectors) into the run folder itself, `phantom` (what is
shared is an anatomy, latents are maps) into `phantom` inside it.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mandorla.diffusion.training import train_diffusion
from mandorla.evaluate import evaluate
from mandorla.recipe import read_recipe
from mandorla.vae.training import train_vae

PARTS = {"polydigits": ".", "phantom": "phantom"}


def run_demo(run: Path, seed: int, overrides: Sequence[str] = (), parts: Sequence[str] = tuple(PARTS)) -> None:
    """Train and evaluate the recipes named in `parts`; the same call again goes on where it stopped.

    `overrides` (`key.sub=value`) apply to every part.
    """
    console, began = Console(), time.perf_counter()
    for part in parts:
        recipe = read_recipe(part, [f"run={json.dumps(str(run / PARTS[part]))}", f"seed={seed}", *overrides])
        console.rule(f"{part}, seed {seed}")
        train_vae(recipe)
        train_diffusion(recipe)
        evaluate(Path(recipe.run))
    for part in parts:
        console.print(f"report: {run / PARTS[part] / 'report.html'}", soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} seconds in all")
