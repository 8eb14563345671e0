"""The refiner in a run folder: its weights, and which stage 1 they were trained for."""

import json
from pathlib import Path

from mandorla.checkpoint import WEIGHTS, build, load_tensors
from mandorla.config import CONFIG
from mandorla.errors import MandorlaError
from mandorla.refiner.config import RefinerConfig
from mandorla.refiner.model import Refiner
from mandorla.storage import read_json, write_text
from mandorla.vae.model import VAE

FOLDER, DESCRIPTION = "refiner", "model.json"


def write_description(run: Path, vae_weights: str) -> None:
    """Write the hash of the stage-1 weights whose images this refiner is for."""
    write_text(run / FOLDER / DESCRIPTION, json.dumps({"vae_weights": vae_weights}, indent=1))


def belongs_to(run: Path) -> str | None:
    """Return the hash of the stage-1 weights that the run's refiner was trained for; None if there is no refiner."""
    path = run / FOLDER / DESCRIPTION
    return read_json(path, "vae_weights")["vae_weights"] if path.is_file() else None


def load_refiner(run: Path, config: RefinerConfig, vae: VAE, vae_weights: str) -> Refiner | None:
    """Return the trained refiner of a run folder, on the CPU; None if it has none.

    Raises MandorlaError if it was trained for another stage 1, or does not fit `config`, the run's.
    """
    if not (run / FOLDER / WEIGHTS).is_file():
        return None
    if belongs_to(run) != vae_weights:
        raise MandorlaError(
            f"{run / FOLDER} was trained for other weights than {run / 'vae'} holds: delete it, or delete it and run"
            f" `mandorla train refiner {run}`"
        )
    weights, _ = load_tensors(run / FOLDER / WEIGHTS)
    mistake = f"{run / FOLDER} does not fit refiner in {run / CONFIG}: train it again"
    return build(lambda: Refiner(config, vae.modalities, vae.layout, vae.covered), weights, mistake)
