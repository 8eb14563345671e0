"""Train stage 2 on the cached latents of a run."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.data import follow_record, load_data
from mandorla.data.dataset import evenly
from mandorla.data.record import recorded_fingerprint
from mandorla.device import choose_device
from mandorla.diffusion.labels import LabelScale, fit_scales, label_values
from mandorla.diffusion.model import Diffusion, sample_noise
from mandorla.diffusion.store import FOLDER, WEAK, belongs_to, to_tensors, write_description
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components
from mandorla.parallel import in_turn
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run, read_run, run_config
from mandorla.training import TrainingConfig, fit
from mandorla.vae.latent_cache import Encoded, open_latents
from mandorla.vae.model import to_sphere
from mandorla.vae.store import load_vae

_VALIDATION = 2048  # latents that a validation during training looks at


def train_diffusion(recipe: Recipe) -> None:
    """Train (or go on training) stage 2 of `recipe` in a run whose stage 1 is trained.

    Raises MandorlaError if there is no stage 1, or its latents do not match its weights.
    """
    run = Path(recipe.run)
    expect(recipe.trainer)
    if not (run / "vae").is_dir():
        raise MandorlaError(
            f"{run} holds no stage 1: run `mandorla train vae` (or vae_uv/vae_train.py) with run={run} first"
        )
    run_config(run)
    parts, whitening = open_latents(run)
    vae, vae_weights = load_vae(run)
    data = recorded_fingerprint(run) + parts["train"].copied
    if belongs_to(run) not in (None, (vae_weights, data)):
        raise MandorlaError(
            f"{run / FOLDER} was trained on the latents of another stage 1 or of other data, or with other"
            " vae.copies or data.augment: delete it to train stage 2 on the present ones"
        )
    scales, labels = _labels(run, recipe.diffusion.labels)
    with in_turn():
        run = claim_run(recipe, "diffusion")
        (run / FOLDER).mkdir(exist_ok=True)
        write_description(run, vae_weights, data, scales)
    seed = recipe.seed
    torch.manual_seed(seed)
    device = choose_device(recipe.device)
    diffusion = Diffusion(recipe.diffusion, vae.layout, scales).to(device)
    chosen = evenly(len(parts["val"]), _VALIDATION)

    def whitened(encoded: Encoded) -> tuple[Components, dict[str, Tensor]]:
        drawn = {name: z.to(device) for name, z in encoded.draw().items()}
        return whitening.whiten(drawn), {name: rows.to(device) for name, rows in encoded.given.items()}

    def fetch(part: str, indices: np.ndarray) -> tuple[Encoded, Components]:
        samples = indices % parts[part].num_samples
        return parts[part].batch(indices), {name: z[samples].to(device) for name, z in labels[part].items()}

    def prepare(batch: tuple[Encoded, Components]) -> tuple[Components, dict[str, Tensor], Components]:
        encoded, known = batch
        return *whitened(encoded), known

    def loss(module: nn.Module, inputs: tuple[Components, ...], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        total, per_component = module(*inputs)
        return total, per_component | {"loss": total.detach()}

    check = fetch("val", chosen)

    alone = {"guidance": 1.0, "autoguidance": 1.0}  # its weaker self comes at the end
    sampling = recipe.diffusion.sampling.model_copy(update=alone)

    def picture(trained: nn.Module) -> bytes:
        def noise(*step: int) -> Components:
            drawn = sample_noise(vae.layout, seed, [(index, *step) for index in range(min(8, len(chosen)))])
            return {name: z.to(device) for name, z in drawn.items()}

        encoded, _ = check
        shared = {} if recipe.diffusion.mode == "joint" else {SHARED: encoded.latents.shared[:8]}
        known = whitening.whiten(shared)
        wanted = [name for name in trained.layout.shapes if name not in known]
        here = {name: z.to(device) for name, z in known.items()}
        drawn = trained.generate(noise(), here, wanted, sampling, fresh=noise)
        latents = whitening.colour({name: z.cpu() for name, z in (known | drawn).items()})
        latents[SHARED] = to_sphere(latents[SHARED])
        names = [m.name for m in vae.modalities]
        return grid([vae.decode(name, latents[SHARED], latents[name]) for name in names], names)

    def train(
        model: Diffusion, config: TrainingConfig, folder: Path, picture: Callable[[nn.Module], bytes | None], title: str
    ) -> None:
        fit(
            model,
            config,
            folder,
            seed=seed,
            num_samples=parts["train"].num_samples,
            copies=parts["train"].copies,
            fetch=lambda indices, step: fetch("train", indices),
            prepare=prepare,
            loss=loss,
            kind=lambda inputs, progress: "any",
            validate=lambda trained: {n: float(v) for n, v in loss(trained, prepare(check), 1.0)[1].items()},
            picture=picture,
            export=lambda trained: to_tensors(trained, whitening),
            title=title,
            key="diffusion.training",
            track=recipe.track,
            strategy=recipe.trainer.strategy,
            parts=_parts,
        )

    config, share = recipe.diffusion.training, recipe.diffusion.weak_share
    if share:
        shorter = config.model_copy(update={"steps": max(1, round(share * config.steps))})
        weak = copy.deepcopy(diffusion)
        train(weak, shorter, run / FOLDER / WEAK, lambda trained: None, "stage 2 (diffusion), a weaker one")
    train(diffusion, config, run / FOLDER, picture, "stage 2 (diffusion)")


def _parts(trained: Diffusion) -> list[nn.Module]:
    return [*trained.network.blocks, trained.network]


def _labels(run: Path, names: Sequence[str]) -> tuple[dict[str, LabelScale], dict[str, Components]]:
    """Return how the labels `names` of the run's data become numbers, and those of its parts "train" and "val"."""
    if not names:
        return {}, {"train": {}, "val": {}}
    recipe = read_run(run)
    data = follow_record(run, load_data(recipe.data, recipe.seed))
    values = {part: label_values(getattr(data, part), names) for part in ("train", "val")}
    scales = fit_scales(values["train"], data)
    return scales, {
        part: {name: scales[name].apply(value) for name, value in given.items()} for part, given in values.items()
    }
