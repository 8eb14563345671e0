"""Train stage 2 on the cached latents of a run."""

import copy
from collections.abc import Sequence
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
from mandorla.diffusion.store import FOLDER, WEAK, belongs_to, check_labels, to_tensors, write_description
from mandorla.errors import MandorlaError
from mandorla.latent_cache import LatentPart, open_latents
from mandorla.latents import SHARED, Components, Encoded, Whitening, to_sphere
from mandorla.nets.transformer import ComponentTransformer, TransformerConfig
from mandorla.parallel import in_turn
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run, read_run
from mandorla.training import Task, alone_in, fit
from mandorla.vae.model import VAE
from mandorla.vae.store import load_vae

_VALIDATION = 2048  # latents that a validation during training looks at
_PICTURED = 8  # tuples in a picture


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
    begun = read_run(run)
    vae, vae_weights = load_vae(run, begun.vae.model)
    parts, whitening = open_latents(run, begun, vae.layout, vae_weights, checked=True)
    data = recorded_fingerprint(run) + parts["train"].copied
    if belongs_to(run) not in (None, (vae_weights, data)):
        raise MandorlaError(
            f"{run / FOLDER} was trained on the latents of another stage 1 or of other data, or with other"
            " vae.copies or data.augment: delete it to train stage 2 on the present ones"
        )
    scales, labels = _labels(run, begun, recipe.diffusion.labels)
    torch.manual_seed(recipe.seed)
    device = choose_device(recipe.device)
    diffusion = Diffusion(recipe.diffusion, vae.layout, scales).to(device)
    task, share = _Task(recipe, vae, parts, whitening, labels, device), recipe.diffusion.weak_share
    how = (recipe.track, recipe.trainer.strategy)
    config = recipe.diffusion.training
    with alone_in(run / FOLDER):
        with in_turn(), claim_run(recipe, "diffusion"):
            check_labels(run, scales)
            write_description(run, vae_weights, data, scales)
        if share:
            shorter = config.model_copy(update={"steps": max(1, round(share * config.steps))})
            fit(task.weaker(), copy.deepcopy(diffusion), shorter, run / FOLDER / WEAK, *how)
        fit(task, diffusion, config, run / FOLDER, *how)


class _Task(Task):
    """Train stage 2 on whitened latents, drawn anew from their posteriors at each step."""

    title, key = "stage 2 (diffusion)", "diffusion.training"

    def __init__(
        self,
        recipe: Recipe,
        vae: VAE,
        latents: dict[str, LatentPart],
        whitening: Whitening,
        labels: dict[str, Components],
        device: torch.device,
    ):
        self.seed, self.num_samples, self.copies = recipe.seed, latents["train"].num_samples, latents["train"].copies
        self.config, self.vae, self.latents, self.device = recipe.diffusion, vae, latents, device
        self.whitening, self.labels = whitening, labels
        self.check = self._batch("val", evenly(len(latents["val"]), _VALIDATION))

    def weaker(self) -> "_Task":
        """Return the same training for a network that samples are led away from, which is not looked at."""
        task = copy.copy(self)
        task.title, task.picture = f"{self.title}, a weaker one", lambda module: None
        return task

    def _batch(self, part: str, indices: np.ndarray) -> tuple[Encoded, Components]:
        latents = self.latents[part]
        samples = indices % latents.num_samples
        return latents.batch(indices), {name: z[samples].to(self.device) for name, z in self.labels[part].items()}

    def fetch(self, indices: np.ndarray, step: int) -> tuple[Encoded, Components]:
        return self._batch("train", indices)

    def prepare(self, batch: tuple[Encoded, Components]) -> tuple[Components, dict[str, Tensor], Components]:
        encoded, labels = batch
        drawn = {name: z.to(self.device) for name, z in encoded.draw().items()}
        given = {name: rows.to(self.device) for name, rows in encoded.given.items()}
        return self.whitening.whiten(drawn), given, labels

    def loss(self, module: nn.Module, inputs: tuple, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        total, per_component = module(*inputs)
        return total, per_component | {"loss": total.detach()}

    def kind(self, module: Diffusion, inputs: tuple, progress: float) -> str | None:
        return "any" if isinstance(self.config.network, TransformerConfig) else None  # what another does is not known

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {name: float(value) for name, value in self.loss(module, self.prepare(self.check), 1.0)[1].items()}

    def picture(self, module: Diffusion) -> bytes | None:
        latents, few = self.check[0].latents, min(_PICTURED, len(self.check[0].latents))
        known = {} if self.config.mode == "joint" else self.whitening.whiten({SHARED: latents.shared[:few]})

        def noise(*step: int) -> Components:
            drawn = sample_noise(self.vae.layout, self.seed, [(index, *step) for index in range(few)])
            return {name: z.to(self.device) for name, z in drawn.items()}

        wanted = [name for name in module.layout.shapes if name not in known]
        here = {name: z.to(self.device) for name, z in known.items()}
        unguided = {"guidance": 1.0, "autoguidance": 1.0}  # its weaker self comes at the end
        alone = self.config.sampling.model_copy(update=unguided)
        drawn = module.generate(noise(), here, wanted, alone, fresh=noise)
        drawn = self.whitening.colour({name: z.cpu() for name, z in (known | drawn).items()})
        names = self.vae.layout.modalities
        return grid([self.vae.decode(name, to_sphere(drawn[SHARED]), drawn[name]) for name in names], names)

    def export(self, module: Diffusion) -> dict[str, Tensor]:
        return to_tensors(module, self.whitening)

    def parts(self, module: Diffusion) -> list[nn.Module]:
        blocks = module.network.blocks if isinstance(module.network, ComponentTransformer) else ()
        return [*blocks, module.network]


def _labels(run: Path, begun: Recipe, names: Sequence[str]) -> tuple[dict[str, LabelScale], dict[str, Components]]:
    """Return how the labels `names` of the run's data become numbers, and those of its parts "train" and "val"."""
    if not names:
        return {}, {"train": {}, "val": {}}
    data = follow_record(run, load_data(begun.data, begun.seed))
    values = {part: label_values(getattr(data, part), names) for part in ("train", "val")}
    scales = fit_scales(values["train"], data)
    return scales, {
        part: {name: scales[name].apply(value) for name, value in given.items()} for part, given in values.items()
    }
