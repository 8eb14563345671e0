"""Stage 1 in a run folder: its weights, and the description that they are loaded by.

`vae/model.json` holds the modalities (name, channels, size) and the networks' settings; `vae/weights.safetensors` the
weights. Whether latents belong to weights is told by a hash over the weights' names, shapes and bytes.
"""

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from mandorla.checkpoint import WEIGHTS, built_for, load_tensors
from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError
from mandorla.recipe import is_trained, read_run, run_config
from mandorla.storage import read_json, write_text
from mandorla.vae.model import VAE

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


def load_vae(run: Path) -> tuple[VAE, str]:
    """Return the trained stage 1 of a run folder, ready for use on the CPU, and the hash of its weights.

    Raises MandorlaError if `run` is not a run folder, stage 1 is not trained, or weights and settings do not match.
    """
    recipe = read_run(run)
    if not (run / FOLDER / WEIGHTS).is_file():
        raise MandorlaError(f"{run} has no trained stage 1: run `mandorla train vae {run}` first")
    weights, _ = load_tensors(run / FOLDER / WEIGHTS)
    modalities = _modalities(run)
    try:
        with built_for(weights):
            vae = VAE(recipe.vae.model, modalities)
        vae.load_state_dict(weights)
    except RuntimeError as error:
        raise MandorlaError(
            f"{run / FOLDER / WEIGHTS} does not fit vae.model in {run_config(run)}: train stage 1 again"
        ) from error
    return vae.requires_grad_(False).eval(), hash_tensors(weights)


def _modalities(run: Path) -> tuple[Modality, ...]:
    described = read_json(run / FOLDER / DESCRIPTION, "modalities")
    try:
        return tuple(_MODALITY.validate_python(m) for m in described["modalities"])
    except (TypeError, ValueError) as error:
        raise MandorlaError(f"{run / FOLDER / DESCRIPTION} is damaged: restore it, or train stage 1 again") from error


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a hash over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
