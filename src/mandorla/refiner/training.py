"""Train the refiner on the images of a run and what its stage 1 decodes of their latents."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.data import follow_record, load_data
from mandorla.data.dataset import Batch, Splits, evenly, on_device
from mandorla.device import choose_device
from mandorla.errors import MandorlaError
from mandorla.latent_cache import LatentPart, open_latents
from mandorla.latents import Components, Encoded, Latents
from mandorla.parallel import in_turn, share
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run, read_run
from mandorla.refiner.model import Refiner
from mandorla.refiner.store import FOLDER, belongs_to, write_description
from mandorla.sharded import gathered
from mandorla.training import Task, alone_in, fit
from mandorla.vae.model import VAE
from mandorla.vae.store import load_vae

_MEASURED = 512  # samples that the size of the detail is measured on, and that a validation looks at
_LEAST = 1e-6  # size of a detail


def train_refiner(recipe: Recipe) -> None:
    """Train (or go on training) the refiner of `recipe` in a run whose stage 1 is trained.

    Raises MandorlaError if there is no stage 1, its latents do not match its weights, or no modality has pixels.
    """
    run = Path(recipe.run)
    expect(recipe.trainer)
    begun = read_run(run)
    vae, vae_weights = load_vae(run, begun.vae.model)
    parts, _ = open_latents(run, begun, vae.layout, vae_weights, checked=True)
    if belongs_to(run) not in (None, vae_weights):
        raise MandorlaError(f"{run / FOLDER} was trained for another stage 1: delete it to train one for the present")
    data = follow_record(run, load_data(begun.data, begun.seed))
    device, seed = choose_device(recipe.device), recipe.seed
    torch.manual_seed(seed)
    refiner, vae = Refiner(recipe.refiner, vae.modalities, vae.layout, vae.covered).to(device), vae.to(device)
    if not refiner.names:
        raise MandorlaError(f"{run}: no modality has pixels, so there is no detail to learn: leave the refiner out")
    with alone_in(run / FOLDER):
        with in_turn(), claim_run(recipe, "refiner"):
            write_description(run, vae_weights)
        task = _Task(recipe, refiner, vae, data, parts, device)
        fit(task, refiner, recipe.refiner.training, run / FOLDER, recipe.track, recipe.trainer.strategy)


class _Task(Task):
    """Train the flow of what decoded images lack; its size is measured first."""

    title, key = "refiner", "refiner.training"

    def __init__(
        self,
        recipe: Recipe,
        refiner: Refiner,
        vae: VAE,
        data: Splits,
        latents: dict[str, LatentPart],
        device: torch.device,
    ):
        self.seed, self.num_samples = recipe.seed, latents["train"].num_samples
        self.config, self.names, self.vae, self.latents = recipe.refiner, refiner.names, vae, latents
        self.device = device
        self.images = {"train": on_device(data.train, device), "val": data.val}
        shown, encoded = self._few("train", _MEASURED)
        for place, (name, decoded) in enumerate(self._decode(self._draw(encoded)).items()):
            rows = shown.present[name]
            refiner.scale[place] = (shown.x[name] - decoded)[rows].std().clamp_min(_LEAST) if rows.any() else 1.0
        self.check, self.pictured = self._few("val", _MEASURED), self._few("val", 8)

    def _batch(self, part: str, indices: np.ndarray) -> tuple[Batch, Encoded]:
        return self.images[part].batch(indices).to(self.device), self.latents[part].batch(indices)

    def _few(self, part: str, num: int) -> tuple[Batch, Encoded]:
        return self._batch(part, evenly(self.latents[part].num_samples, num))

    def _draw(self, encoded: Encoded) -> Latents:
        """Return latents drawn from their posteriors, as stage 2 learns them."""
        return Latents.of(encoded.draw()).to(self.device)

    @torch.no_grad()
    def _decode(self, latents: Latents) -> Components:
        return {n: self.vae.decode(n, latents.shared, latents.private[n]).clamp(0, 1) for n in self.names}

    def fetch(self, indices: np.ndarray, step: int) -> tuple[Batch, Encoded]:
        return self._batch("train", indices)

    def loss(
        self, module: nn.Module, inputs: tuple[Batch, Encoded], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shown, latents = inputs[0], self._draw(inputs[1])
        noise = {name: torch.randn_like(shown.x[name]) for name in self.names}
        times = {name: torch.sigmoid(torch.randn(len(latents), device=self.device)) for name in self.names}
        own = share(len(latents))
        x, present, noise, times = (
            {name: part[name][own] for name in self.names} for part in (shown.x, shown.present, noise, times)
        )
        latents = latents[own]
        total, per_modality = module(x, latents, self._decode(latents), present, noise, times)
        return total, per_modality | {"loss": total.detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {name: float(value) for name, value in self.loss(module, self.check, 1.0)[1].items()}

    def picture(self, module: Refiner) -> bytes:
        (shown, encoded), rows, titles = self.pictured, [], []
        latents = self._draw(encoded)
        for name, x in self._decode(latents).items():
            noise = torch.randn_like(x)
            with gathered(module):
                refined = module.refine(name, latents, x, noise, self.config, self.vae.read)
            rows += [shown.x[name], x, refined.clamp(0, 1)]
            titles += [name, "decoded", "refined"]
        return grid(rows, titles)
