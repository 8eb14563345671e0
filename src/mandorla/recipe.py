"""The root of all settings, the recipes that ship, and the run folder that a recipe writes to.

A recipe is one YAML with the blocks `data`, `vae`, `diffusion` and `evaluate`. The run folder keeps the resolved one
(`config.yaml`), so that every later command needs the folder alone.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

from pydantic import Field

from mandorla.config import Settings, describe, dump, load_settings
from mandorla.data import DataConfig
from mandorla.data.polydigits import PolydigitsConfig
from mandorla.diffusion.config import DiffusionConfig
from mandorla.errors import MandorlaError
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.storage import write_text
from mandorla.vae.config import VAEConfig

CONFIG = "config.yaml"
SHIPPED = Path(__file__).parent / "recipes"


class Recipe(Settings):
    """Everything that a run can be told."""

    run: str = Field("runs/polydigits", pattern=r"^[^\x00-\x1f]+$")
    """run folder; a relative one is meant from where the command is given"""
    seed: int = Field(0, ge=0, lt=2**63)
    """same seed, same result: data, weights, batches, samples"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto takes a GPU if there is one"""
    data: DataConfig = PolydigitsConfig()
    """paired data"""
    vae: VAEConfig = VAEConfig()
    """stage 1"""
    diffusion: DiffusionConfig = DiffusionConfig()
    """stage 2"""
    evaluate: EvaluateConfig = EvaluateConfig()
    """what is measured"""


def read_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file, in a run folder, or of a name that ships with mandorla, changed by `overrides`.

    Raises MandorlaError if there is no such recipe or a key is wrong.
    """
    path = Path(source)
    if path.is_dir():
        path, overrides = run_config(path), [f"run={json.dumps(source)}", *overrides]
    elif not path.is_file():
        path = SHIPPED / f"{source}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise MandorlaError(f"no recipe {source!r}: give a YAML file, a run folder, or one of {names}")
    return load_settings(Recipe, path=path, overrides=overrides)


def run_config(run: Path) -> Path:
    """Return the path of the resolved recipe in a run folder. Raises MandorlaError if `run` is not one."""
    if not (run / CONFIG).is_file():
        raise MandorlaError(
            f"{run} is not a run folder (it has no {CONFIG}): give the folder that `mandorla train vae` wrote"
        )
    return run / CONFIG


def claim_run(recipe: Recipe, blocks: Sequence[str]) -> Path:
    """Write the resolved recipe into its run folder and return the folder.

    `blocks` are the top-level keys that this command uses. Raises MandorlaError if the run was begun with other values
    of them and something was trained with those: two trainings do not share a folder.
    """
    run = Path(recipe.run)
    if (run / CONFIG).is_file():
        begun = load_settings(Recipe, path=run / CONFIG)
        for block in blocks:
            then, now = getattr(begun, block), getattr(recipe, block)
            if then != now and _trained(run, block):
                raise MandorlaError(
                    f"{run} was begun with {_first_difference(block, then, now)}: choose another run folder, or delete"
                    f" {run / _OWNER.get(block, 'vae')} to train it anew"
                )
        kept = {block: getattr(recipe, block) for block in blocks}
        recipe = begun.model_copy(update=kept | {"run": recipe.run, "device": recipe.device})
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / CONFIG, dump(recipe))
    write_text(run / "environment.json", json.dumps(_environment(recipe), indent=1))
    return run


_OWNER = {"diffusion": "diffusion"}


def _trained(run: Path, block: str) -> bool:
    return (run / _OWNER.get(block, "vae") / "model.json").is_file()


def _first_difference(block: str, then, now) -> str:
    if not isinstance(then, Settings):
        return f"{block}={then}, not {now}"
    old = {row.key: row.default for row in describe(then) if row.type != "block"}
    new = {row.key: row.default for row in describe(now) if row.type != "block"}
    key = next(key for key in old | new if old.get(key) != new.get(key))
    return f"{block}.{key}={old.get(key)}, not {new.get(key)}"


def _environment(recipe: Recipe) -> dict:
    import torch

    root = Path(__file__).parent
    commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or None,
        "seed": recipe.seed,
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions())),
    }
