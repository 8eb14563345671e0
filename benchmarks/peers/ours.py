"""Ours, trained for as many minutes as its peers: both stages of a recipe, the steps of both scaled by one factor.

The learning rate follows the number of steps, which must be known beforehand. A short trial tells what a step costs and
what everything else does (reading data, validating, caching latents); it is not counted, its weights are thrown away.
Stage 2 then gets the minutes that stage 1 really left.
"""

import json
import math
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch
from task import Stopwatch, Task, minutes, read_task
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import mandorla
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.evaluate.priors import draw_mixture
from mandorla.latents import SHARED, Latents, to_sphere
from mandorla.model import Mandorla
from mandorla.recipe import Recipe, read_recipe
from mandorla.vae.training import train_vae

_TRIAL = 200  # steps: enough that a memory of rows is full for most of them
_VALIDATIONS = 4  # of each stage, the first and three on the way: one costs as much as many steps
_STAGES: dict[str, Callable[[Recipe], None]] = {"vae": train_vae, "diffusion": train_diffusion}


def recipe_of(task: Task, run: Path, steps: dict[str, int]) -> Recipe:
    """Return the recipe of the task with so many `steps` of each stage, to be trained in `run`.

    A distillation of stage 1 keeps its share of them.
    """
    keys = [f"run={json.dumps(str(run))}"]
    config = read_recipe(str(task.folder / "recipe.yaml")).vae
    if distil := config.distillation:
        share = steps["vae"] / config.training.steps
        for key in ("steps", "steps_after"):
            keys.append(f"vae.distillation.{key}={max(1, round(share * getattr(distil, key)))}")
    for stage, num in steps.items():
        keys += [f"{stage}.training.{key}={num}" for key in ("steps", "checkpoint_every", "picture_every")]
        keys.append(f"{stage}.training.validate_every={math.ceil(num / _VALIDATIONS)}")
    return read_recipe(str(task.folder / "recipe.yaml"), keys)


def measure(task: Task) -> dict[str, tuple[float, float]]:
    """Return what each stage costs, in minutes: for one step, and for all else, but for what is loaded once.

    Steps of a distillation count as a part of those of stage 1 that they go with.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = [
            "data.num_train=16",
            "data.num_val=4",
            "data.num_test=4",
            "vae.training.steps=1",
            "vae.distillation=null",
        ]
        recipe = read_recipe("polydigits", [f"run={json.dumps(folder)}", *few, "diffusion.training.steps=1"])
        for train in _STAGES.values():
            train(recipe)
    costs, ends = {}, []
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(task, Path(folder) / "run", dict.fromkeys(_STAGES, _TRIAL))
        hook = register_optimizer_step_post_hook(lambda *_: ends.append(minutes()))
        for stage, train in _STAGES.items():
            begun = minutes()
            train(recipe)
            taken = sorted(later - earlier for earlier, later in pairwise(ends))
            trainings = 3 if stage == "vae" and recipe.vae.distillation else 1
            step = mean(taken[: -_VALIDATIONS * trainings]) * len(ends) / _TRIAL
            costs[stage] = step, max(minutes() - begun - _TRIAL * step, 0.0)
            ends.clear()
        hook.remove()
    return costs


def train_both(task: Task, costs: dict[str, tuple[float, float]]) -> tuple[Path, dict[str, int]]:
    """Train both stages, which cost what `measure` says, and return the run folder and the steps of each.

    Raises MandorlaError where the minutes do not hold a training.
    """
    run = task.folder / "run"
    recipe = read_recipe(str(task.folder / "recipe.yaml"))
    wanted = {stage: getattr(recipe, stage).training.steps for stage in _STAGES}
    rest = sum(fixed for _, fixed in costs.values())
    factor = (task.minutes - rest) / sum(wanted[stage] * step for stage, (step, _) in costs.items())
    if factor * min(wanted.values()) < 1:
        raise MandorlaError(
            f"--minutes {task.minutes:g} hold no training of ours, which takes {rest:.2f} besides steps"
        )
    steps = {"vae": round(wanted["vae"] * factor)}
    begun = minutes()
    _STAGES["vae"](recipe_of(task, run, steps))
    step, fixed = costs["diffusion"]
    steps["diffusion"] = max(1, round((task.minutes - (minutes() - begun) - fixed) / step))
    _STAGES["diffusion"](recipe_of(task, run, steps))
    return run, steps


def main() -> None:
    """Train and answer."""
    task = read_task()
    costs = measure(task)
    watch = Stopwatch()
    run, steps = train_both(task, costs)
    spent = watch.read()
    model = mandorla.load(run)
    (answer_routes if task.routes else answer_codes)(task, model)
    distil = model.recipe.vae.distillation
    more = [distil.steps, distil.steps_after] if distil else []
    how = " + ".join(map(str, [steps["vae"], *more, steps["diffusion"]]))
    how = f"{how} steps, {model.sampling.steps} of the sampler"
    task.report(spent, sum(steps.values()) + sum(more), nn.ModuleList([model.vae, model.diffusion]), how)


def answer_codes(task: Task, model: Mandorla) -> None:
    """Write codes, what is decoded from them, and generated tuples."""
    codes: dict[str, dict[str, torch.Tensor]] = {}
    for part in ("known", "test"):
        encoded = {name: model.encode({name: x}) for name, x in task.images(part).items()}
        codes[f"{part}/shared"] = {name: latents.shared for name, latents in encoded.items()}
        codes[f"{part}/private"] = {name: latents.private[name] for name, latents in encoded.items()}
    for place, of_name in codes.items():
        task.write(place, of_name)
    shared, private, donor = codes["test/shared"], codes["test/private"], torch.from_numpy(task.donor())
    for number, (source, c) in enumerate(shared.items()):
        drawn = model.decode(model.sample_private(c, task.seed + number))
        task.write(f"given/{source}", {name: x[None] for name, x in drawn.items()})
    swapped = {name: model.decode(Latents(c, {name: private[name][donor]}))[name] for name, c in shared.items()}
    task.write("swapped", swapped)
    task.write("joint", model.sample(task.num_generated, task.seed).x)
    drawn = draw_mixture(model.encode(task.images("known")).components, task.num_generated, task.seed)
    task.write("joint mixture", model.decode(Latents.of(drawn | {SHARED: to_sphere(drawn[SHARED])})))


def answer_routes(task: Task, model: Mandorla) -> None:
    """Write translations, with the private part drawn and at its prior mean, and generated tuples."""
    x = task.images("translated")
    for given, wanted in task.routes:
        seen, place = {name: x[name] for name in given}, "+".join(given)
        task.write(f"given/{place}", model.translate(seen, wanted, task.num_samples, task.seed))
        task.write(f"mean/{place}", model.translate(seen, wanted, num_samples=0))
    task.write("joint", model.sample(task.num_generated, task.seed).x)


if __name__ == "__main__":
    main()
