"""Stage 2 in a run folder: weights with the whitening statistics, and which stage 1 and data they were trained on."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mandorla.checkpoint import WEIGHTS, build, load_tensors
from mandorla.config import CONFIG
from mandorla.diffusion.config import DiffusionConfig
from mandorla.diffusion.labels import LabelScale, of_json, to_json
from mandorla.diffusion.model import Diffusion
from mandorla.errors import MandorlaError
from mandorla.latents import Layout, Whitening
from mandorla.recipe import is_trained
from mandorla.storage import read_json, write_text

FOLDER, DESCRIPTION = "diffusion", "model.json"
WEAK = "weak"  # folder inside that of stage 2
_NETWORK, _WHITENING = "network.", "whitening."


def write_description(run: Path, vae_weights: str, data: str, labels: Mapping[str, LabelScale]) -> None:
    """Write the hashes of the stage-1 weights and of the data that this stage 2 belongs to, and how it reads labels."""
    described = {"vae_weights": vae_weights, "data": data, "labels": to_json(labels)}
    write_text(run / FOLDER / DESCRIPTION, json.dumps(described, indent=1))


def belongs_to(run: Path) -> tuple[str, str] | None:
    """Return the hashes of the stage-1 weights and of the data that the run's stage 2 was trained on.

    None if there is no stage 2.
    """
    path = run / FOLDER / DESCRIPTION
    if not path.is_file():
        return None
    described = read_json(path, "vae_weights")
    return described["vae_weights"], described.get("data", "")


def check_labels(run: Path, labels: Mapping[str, LabelScale]) -> None:
    """Raise MandorlaError if stage 2 was begun in `run` with other classes, another mean or spread of one of `labels`.

    A value that is given for it would else mean something other than what was learnt.
    """
    if not is_trained(run, FOLDER) or not (run / FOLDER / DESCRIPTION).is_file():
        return
    begun = of_json(read_json(run / FOLDER / DESCRIPTION).get("labels", {}))
    for name, then in begun.items():
        if name in labels and not then.is_like(labels[name]):
            raise MandorlaError(
                f"{run / FOLDER} was begun with the label {name!r} of {then}, and the data now hold one of"
                f" {labels[name]}: restore it, or delete {run / FOLDER} to train stage 2 anew"
            )


def to_tensors(diffusion: Diffusion, whitening: Whitening) -> dict[str, Tensor]:
    """Return weights and whitening statistics as named tensors."""
    return diffusion.state_dict() | {_WHITENING + name: z for name, z in whitening.tensors().items()}


def is_whole(run: Path) -> bool:
    """Return whether stage 2 of a run folder is trained."""
    return (run / FOLDER / WEIGHTS).is_file()


def load_diffusion(run: Path, config: DiffusionConfig, layout: Layout, vae_weights: str) -> tuple[Diffusion, Whitening]:
    """Return the trained stage 2 of a run folder, with its weaker self if it has one, and its whitening; on the CPU.

    Raises MandorlaError if it is not trained, or was trained on the latents of another stage 1, or does not fit
    `config`, the run's.
    """
    if not is_whole(run):
        raise MandorlaError(f"{run} has no trained stage 2: run `mandorla train diffusion {run}` first")
    tensors, _ = load_tensors(run / FOLDER / WEIGHTS)
    owner = belongs_to(run)
    if owner is None or owner[0] != vae_weights:
        raise MandorlaError(
            f"{run / FOLDER} was trained on latents of other weights than {run / 'vae'} holds: delete it and train"
            " stage 2 again"
        )
    labels = of_json(read_json(run / FOLDER / DESCRIPTION, "vae_weights").get("labels", {}))
    weights = {name: z for name, z in tensors.items() if not name.startswith(_WHITENING)}
    if config.weak_share:
        weak, _ = load_tensors(run / FOLDER / WEAK / WEIGHTS)
        weights |= {f"weak.{name}": z for name, z in _part(weak, _NETWORK).items()}

    def make() -> Diffusion:
        diffusion = Diffusion(config, layout, labels)
        diffusion.weak = copy.deepcopy(diffusion.network) if config.weak_share else None
        return diffusion

    diffusion = build(make, weights, f"{run / FOLDER} does not fit diffusion in {run / CONFIG}: train stage 2 again")
    return diffusion, Whitening.of_tensors(_part(tensors, _WHITENING))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): z for name, z in tensors.items() if name.startswith(prefix)}
