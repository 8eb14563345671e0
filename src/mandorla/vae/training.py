"""Train stage 1 into a run folder, then write the latents of the whole training and validation set."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.checkpoint import WEIGHTS, build, load_tensors
from mandorla.data import keep_record, load_data
from mandorla.data.augment import Augment, augment_of
from mandorla.data.dataset import Batch, Splits, evenly, on_device
from mandorla.device import choose_device
from mandorla.errors import MandorlaError
from mandorla.parallel import in_turn, share
from mandorla.pictures import grid
from mandorla.processes import expect
from mandorla.recipe import Recipe, claim_run, is_trained, make_run
from mandorla.sharded import gathered
from mandorla.training import Task, alone_in, fit
from mandorla.vae.distillation import Distillation, check_apart, what_others_say
from mandorla.vae.encoding import write_latents
from mandorla.vae.model import VAE, pool
from mandorla.vae.objective import Objective
from mandorla.vae.separation import separation
from mandorla.vae.store import FOLDER, check_description, write_description

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
    if len(splits.train) < 2:
        raise MandorlaError("there is 1 training sample, and of one nothing can be told from another: add some")
    expect(recipe.trainer)
    torch.manual_seed(recipe.seed)
    vae = VAE(config.model, splits.modalities)
    if config.distillation:
        check_apart(vae)
    augment = Augment(augment_of(recipe.data), splits.modalities, recipe.seed)
    device = choose_device(recipe.device)
    run = make_run(recipe)
    with alone_in(run / FOLDER):
        with in_turn(), claim_run(recipe, "vae"):
            check_description(run, vae)
            splits = keep_record(run, splits, is_trained(run, FOLDER))
            write_description(run, vae)
        _train(recipe, _Task(recipe.seed, splits, augment, device), vae, run / FOLDER)
    return splits


def _train(recipe: Recipe, task: "_Task", vae: VAE, folder: Path) -> None:
    """Train `vae` into `folder`; one that is distilled by way of two folders in there."""
    config, strategy = recipe.vae, recipe.trainer.strategy
    in_parts = strategy == "fsdp"  # which divides no weights that lie in memory channels last
    flat = all(len(m.size) == 2 for m in vae.modalities)

    def take(task: _Task, module: Objective | Distillation, folder: Path, **changes: int) -> None:
        """Train `module` as `vae.training` with `changes` says."""
        module = module.to(task.device)
        if task.device.type == "cpu" and flat and not in_parts:
            module = module.to(memory_format=torch.channels_last)
        training = config.training.model_copy(update=changes)
        fit(task, module, training, folder, recipe.track, strategy)

    def best_of(folder: Path) -> VAE:
        path = folder / WEIGHTS
        mistake = f"{path} does not fit vae.model: restore it, or delete {folder} to train it anew"
        return build(lambda: VAE(config.model, vae.modalities), load_tensors(path)[0], mistake)

    if not (distil := config.distillation):
        return take(task, Objective(vae, config.loss), folder)
    agreed, distilled = (folder / name for name in ("agreed", "distilled"))
    take(task, Objective(vae, config.loss), agreed)
    learning = _Distillation(task, teacher=best_of(agreed))
    take(learning, Distillation(best_of(agreed)), distilled, steps=distil.steps, batch_size=distil.batch_size)
    vae = best_of(distilled).requires_grad_(True)
    vae.hold_shared()
    after = copy.copy(task)
    after.title = f"{task.title}, the rest"
    take(after, Objective(vae, config.loss), folder, steps=distil.steps_after)


class _Task(Task):
    """Train all terms of stage 1 on augmented batches of the training part."""

    title, key = "stage 1 (vae)", "vae.training"

    def __init__(self, seed: int, splits: Splits, augment: Augment, device: torch.device):
        self.seed, self.num_samples = seed, len(splits.train)
        self.augment, self.val, self.device = augment, splits.val, device
        self.train = on_device(splits.train, device)
        rows = np.random.default_rng(0).permutation(evenly(len(splits.val), _VALIDATION))  # data may be sorted
        self.check = splits.val.batch(rows).to(device)
        own = share(len(self.check.ids))
        self.own_check = Batch(
            *({name: z[own] for name, z in part.items()} for part in (self.check.x, self.check.present))
        )

    def fetch(self, indices: np.ndarray, step: int) -> Batch:
        indices = indices[share(len(indices))]
        batch = self.train.batch(indices)
        return self.augment(Batch(batch.x, batch.present).to(self.device), indices, step)  # no mask is moved along

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return batch.x, batch.present

    def loss(self, module: nn.Module, inputs: tuple, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        return module(Batch(*inputs), progress)

    def kind(self, module: Objective, inputs: tuple, progress: float) -> tuple | None:
        return module.kind(inputs[1], progress)

    def validate(self, module: Objective) -> dict[str, float]:
        with gathered(module):
            separated = separation(module.vae, self.check)
        return separated | {name: float(value) for name, value in module(self.own_check)[1].items()}

    def picture(self, module: Objective) -> bytes | None:
        with gathered(module):
            return _draw_reconstructions(module.vae, self.val.batch(evenly(len(self.val), 8)).to(self.device))

    def export(self, module: Objective) -> dict[str, Tensor]:
        return module.vae.state_dict()


class _Distillation(_Task):
    """Train shared codes to say what others' codes said: those of the `teacher`, which is stage 1 as it was."""

    title, batch_key = "stage 1 (vae), shared codes", "vae.distillation.batch_size"

    def __init__(self, task: _Task, teacher: VAE):
        vars(self).update(vars(task))  # the same data, on the device already
        self.teacher = teacher.to(task.device)

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], ...]:
        return batch.x, batch.present, *what_others_say(self.teacher, batch.x, batch.present)

    def loss(self, module: nn.Module, inputs: tuple, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        apart = module(*inputs)
        return apart, {"loss": apart.detach()}

    def kind(self, module: nn.Module, inputs: tuple, progress: float) -> None:
        return None

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {"loss": float(module(*self.prepare(self.own_check)))}

    def picture(self, module: nn.Module) -> None:
        return None


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
