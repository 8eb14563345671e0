"""Train stage 1 into a run folder, then write the latents of the whole training and validation set."""

from pathlib import Path

import numpy as np
import torch

from mandorla.data import keep_record, load_data
from mandorla.data.augment import Augment, augment_of
from mandorla.data.dataset import Batch, Splits, evenly, on_device
from mandorla.device import choose_device
from mandorla.parallel import in_turn, share
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run
from mandorla.sharded import gathered
from mandorla.training import fit
from mandorla.vae.latent_cache import write_latents
from mandorla.vae.model import VAE, pool
from mandorla.vae.objective import Objective
from mandorla.vae.separation import separation
from mandorla.vae.store import FOLDER, write_description

_VALIDATION = 512  # samples that a validation during training looks at


def train_vae(recipe: Recipe) -> None:
    """Train (or go on training) stage 1 of `recipe` and write its latents.

    Raises MandorlaError if the data, the settings and the run folder do not fit together; nothing is written then.
    """
    splits = fit_vae(recipe, load_data(recipe.data, recipe.seed))
    write_latents(Path(recipe.run), splits)


def fit_vae(recipe: Recipe, splits: Splits) -> Splits:
    """Train (or go on training) stage 1 of `recipe` on its data `splits`, and return them as the run has them.

    Raises MandorlaError as `train_vae` does.
    """
    config = recipe.vae
    expect(recipe.trainer)
    torch.manual_seed(recipe.seed)
    vae = VAE(config.model, splits.modalities)
    device = choose_device(recipe.device)
    objective = Objective(vae, config.loss).to(device)
    in_parts = recipe.trainer.strategy == "fsdp"  # which divides no weights that lie in memory channels last
    if device.type == "cpu" and not in_parts and all(len(m.size) == 2 for m in splits.modalities):
        objective = objective.to(memory_format=torch.channels_last)
    augment = Augment(augment_of(recipe.data), splits.modalities, recipe.seed)
    with in_turn():
        run = claim_run(recipe, "vae")
        splits = keep_record(run, splits)
        (run / FOLDER).mkdir(exist_ok=True)
        write_description(run, vae)
    train = on_device(splits.train, device)
    check = splits.val.batch(evenly(len(splits.val), _VALIDATION)).to(device)
    own = share(len(check.ids))
    own_check = Batch(*({name: z[own] for name, z in part.items()} for part in (check.x, check.present)))

    def fetch(indices: np.ndarray, step: int) -> Batch:
        indices = indices[share(len(indices))]
        batch = train.batch(indices)
        return augment(Batch(batch.x, batch.present).to(device), indices, step)  # masks need not be moved along

    def validate(trained: Objective) -> dict[str, float]:
        with gathered(trained):
            separated = separation(trained.vae, check)
        return separated | {name: float(value) for name, value in trained(own_check)[1].items()}

    def picture(trained: Objective) -> bytes | None:
        with gathered(trained):
            return _draw_reconstructions(trained.vae, splits.val.batch(evenly(len(splits.val), 8)).to(device))

    fit(
        objective,
        config.training,
        run / FOLDER,
        seed=recipe.seed,
        num_samples=len(train),
        fetch=fetch,
        prepare=lambda batch: (batch.x, batch.present),
        loss=lambda module, inputs, progress: module(Batch(*inputs), progress),
        kind=lambda inputs, progress: objective.kind(inputs[1], progress),
        validate=validate,
        picture=picture,
        export=lambda trained: trained.vae.state_dict(),
        title="stage 1 (vae)",
        key="vae.training",
        track=recipe.track,
        strategy=recipe.trainer.strategy,
    )
    return splits


def _draw_reconstructions(vae: VAE, batch: Batch) -> bytes | None:
    """Draw per modality: data, reconstruction, and the shared part of each sample with another one's private part."""
    features, codes = vae.encode(batch.x, batch.present)
    whole = pool(codes, batch.present)
    rows, names = [], []
    for name, x in batch.x.items():
        here = batch.present[name]
        if not here.any():
            continue
        u, _ = vae.posterior(name, features[name], whole[here])
        rows += [x[here], vae.decode(name, whole[here], u), vae.decode(name, whole[here], u.roll(1, 0))]
        names += [name, "reconstruction", "private of the left"]
    return grid(rows, names, bands=(range(3, len(rows), 3), ())) if rows else None
