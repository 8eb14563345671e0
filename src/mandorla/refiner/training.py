"""Train the refiner on the images of a run and what its stage 1 decodes of their latents."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.data import follow_record, load_data
from mandorla.data.dataset import Batch, evenly, on_device
from mandorla.device import choose_device
from mandorla.errors import MandorlaError
from mandorla.latents import Components, Latents
from mandorla.parallel import in_turn, share
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run, read_run, run_config
from mandorla.refiner.model import Refiner
from mandorla.refiner.store import FOLDER, belongs_to, write_description
from mandorla.sharded import gathered
from mandorla.training import fit
from mandorla.vae.latent_cache import Encoded, open_latents
from mandorla.vae.store import load_vae

_MEASURED = 512  # samples that the size of the detail is measured on, and that a validation looks at
_LEAST = 1e-6  # size of a detail


def train_refiner(recipe: Recipe) -> None:
    """Train (or go on training) the refiner of `recipe` in a run whose stage 1 is trained.

    Raises MandorlaError if there is no stage 1, its latents do not match its weights, or no modality has pixels.
    """
    run = Path(recipe.run)
    expect(recipe.trainer)
    run_config(run)
    parts, _ = open_latents(run)
    vae, vae_weights = load_vae(run)
    if belongs_to(run) not in (None, vae_weights):
        raise MandorlaError(f"{run / FOLDER} was trained for another stage 1: delete it to train one for the present")
    begun = read_run(run)
    data = follow_record(run, load_data(begun.data, begun.seed))
    device, seed = choose_device(recipe.device), recipe.seed
    torch.manual_seed(seed)
    refiner, vae = Refiner(recipe.refiner, vae.modalities, vae.layout).to(device), vae.to(device)
    if not refiner.names:
        raise MandorlaError(f"{run}: no modality has pixels, so there is no detail to learn: leave the refiner out")
    with in_turn():
        run = claim_run(recipe, "refiner")
        (run / FOLDER).mkdir(exist_ok=True)
        write_description(run, vae_weights)
    images = {"train": on_device(data.train, device), "val": data.val}

    def fetch(part: str, indices: np.ndarray) -> tuple[Batch, Encoded]:
        return images[part].batch(indices).to(device), parts[part].batch(indices)

    def draw(encoded: Encoded) -> Latents:
        """Return latents drawn from their posteriors, as stage 2 learns them."""
        return Latents.of(encoded.draw()).to(device)

    @torch.no_grad()
    def decode(latents: Latents) -> Components:
        return {n: vae.decode(n, latents.shared, latents.private[n]).clamp(0, 1) for n in refiner.names}

    def loss(module: nn.Module, batch: tuple[Batch, Encoded], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        shown, latents = batch[0], draw(batch[1])
        noise = {name: torch.randn_like(shown.x[name]) for name in refiner.names}
        times = {name: torch.sigmoid(torch.randn(len(latents), device=device)) for name in refiner.names}
        own = share(len(latents))
        x, present, noise, times = (
            {name: part[name][own] for name in refiner.names} for part in (shown.x, shown.present, noise, times)
        )
        latents = latents[own]
        total, per_modality = module(x, latents, decode(latents), present, noise, times)
        return total, per_modality | {"loss": total.detach()}

    def few(part: str, num: int) -> tuple[Batch, Encoded]:
        have = parts[part].num_samples
        return fetch(part, evenly(have, num))

    shown, encoded = few("train", _MEASURED)
    for place, (name, decoded) in enumerate(decode(draw(encoded)).items()):
        rows = shown.present[name]
        refiner.scale[place] = (shown.x[name] - decoded)[rows].std().clamp_min(_LEAST) if rows.any() else 1.0
    check, pictured = few("val", _MEASURED), few("val", 8)

    def picture(trained: Refiner) -> bytes:
        (shown, encoded), rows, titles = pictured, [], []
        latents = draw(encoded)
        for name, x in decode(latents).items():
            noise = torch.randn_like(x)
            with gathered(trained):
                refined = trained.refine(name, latents, x, noise, recipe.refiner, vae.read)
            rows += [shown.x[name], x, refined.clamp(0, 1)]
            titles += [name, "decoded", "refined"]
        return grid(rows, titles)

    fit(
        refiner,
        recipe.refiner.training,
        run / FOLDER,
        seed=seed,
        num_samples=parts["train"].num_samples,
        fetch=lambda indices, step: fetch("train", indices),
        loss=loss,
        validate=lambda trained: {name: float(value) for name, value in loss(trained, check, 1.0)[1].items()},
        picture=picture,
        export=lambda trained: trained.state_dict(),
        title="refiner",
        key="refiner.training",
        track=recipe.track,
        strategy=recipe.trainer.strategy,
    )
