"""Stage 1 in a run folder: its weights, and the description that they are loaded by.

`vae/model.json` holds the modalities (name, channels, size) and the networks' settings; `vae/weights.safetensors` the
weights. Whether latents belong to weights is told by a hash over the weights' names, shapes and bytes.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter

from mandorla.checkpoint import WEIGHTS, build, hash_tensors, load_tensors
from mandorla.config import CONFIG
from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError
from mandorla.recipe import is_trained
from mandorla.storage import read_json, write_text
from mandorla.vae.model import VAE, ModelConfig

FOLDER, DESCRIPTION = "vae", "model.json"
_MODALITY = TypeAdapter(Modality)


def write_description(run: Path, vae: VAE) -> None:
    """Write what the model's shape depends on, beside its weights."""
    facts = {"modalities": [{"name": m.name, "channels": m.channels, "size": m.size} for m in vae.modalities]}
    write_text(run / FOLDER / DESCRIPTION, json.dumps(facts, indent=1))


def check_description(run: Path, vae: VAE) -> None:
    """Raise MandorlaError if stage 1 was trained in `run` on modalities of other names, channels or sizes."""
    if not is_trained(run, FOLDER) or (then := _modalities(run)) == vae.modalities:
        return
    was, are = (", ".join(f"{m.name} {m.shape}" for m in modalities) for modalities in (then, vae.modalities))
    raise MandorlaError(
        f"{run / FOLDER} was trained on {was}, and the data hold {are}: restore them, choose another run folder, or"
        f" delete {run / FOLDER} to train it anew"
    )


def load_vae(run: Path, config: ModelConfig) -> tuple[VAE, str]:
    """Return the trained stage 1 of a run folder, ready for use on the CPU, and the hash of its weights.

    Raises MandorlaError if stage 1 is not trained, or its weights do not fit `config`, the run's `vae.model`.
    """
    path = run / FOLDER / WEIGHTS
    if not path.is_file():
        raise MandorlaError(f"{run} has no trained stage 1: run `mandorla train vae {run}` first")
    (weights, _), modalities = load_tensors(path), _modalities(run)
    mistake = f"{path} does not fit vae.model in {run / CONFIG}: train stage 1 again"
    return build(lambda: VAE(config, modalities), weights, mistake), hash_tensors(weights)


def _modalities(run: Path) -> tuple[Modality, ...]:
    described = read_json(run / FOLDER / DESCRIPTION, "modalities")
    try:
        return tuple(_MODALITY.validate_python(m) for m in described["modalities"])
    except (TypeError, ValueError) as error:
        raise MandorlaError(f"{run / FOLDER / DESCRIPTION} is damaged: restore it, or train stage 1 again") from error
