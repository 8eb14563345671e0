"""The root of all settings, the recipes that ship, and the run folder that a recipe writes to.

A recipe is one YAML with the blocks `data`, `vae`, `diffusion` and `evaluate`. The run folder keeps the resolved one
(`config.yaml`), so that every later command needs the folder alone, from wherever it is given: paths to data and to
the user's own networks are absolute there.
"""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mandorla.checkpoint import PREVIOUS, STATE, WEIGHTS
from mandorla.config import COMMAND_LINE, CONFIG, Relative, Settings, differences, dump, load_settings, read_yaml
from mandorla.data import DataConfig
from mandorla.data.polydigits import PolydigitsConfig
from mandorla.data.python import PythonConfig
from mandorla.data.root import VARIABLE, RootedConfig
from mandorla.diffusion.config import DiffusionConfig
from mandorla.errors import MandorlaError, MandorlaWarning, did_you_mean
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.imports import SUFFIX, import_all, settle
from mandorla.refiner.config import RefinerConfig
from mandorla.storage import write_text
from mandorla.track import Name, check_trackers
from mandorla.training import TrainerConfig
from mandorla.vae.config import VAEConfig

Stage = Literal["vae", "diffusion", "refiner"]
SHIPPED = Path(__file__).parent / "recipes"
HOW_DRAWN = {"sampling", "steps", "temperature", "guidance"}  # keys of diffusion and refiner: how samples are drawn
HOW_READ = {"root", "cache", "workers"}  # keys of data: where its files lie and how they are read, not what they hold


class Recipe(Settings):
    """Everything that a run can be told."""

    run: Annotated[str | None, Relative()] = Field(None, pattern=r"^[^\x00-\x1f]+$")
    """run folder; a relative one is meant from the YAML file that names it, on the command line from the current
    folder; null: runs/ and the name of the recipe, or the kind of the data where the command line gives them"""
    seed: int = Field(0, ge=0, lt=2**63)
    """same seed, same result: data, weights, batches, samples"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute; auto takes a GPU if there is one"""
    track: tuple[Name, ...] = ("tensorboard",)
    """what shows the figures of a training, besides metrics.jsonl: tensorboard, wandb, mlflow; all stay on this machine
    unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise"""
    trainer: TrainerConfig = TrainerConfig()
    """how many processes train together"""
    imports: Annotated[tuple[str, ...], Relative(SUFFIX)] = ()
    """your own Python files (`mine.py`, relative as `run` is) and modules (`package.module`) that register networks and
    datasets"""
    data: DataConfig = PolydigitsConfig()
    """paired data"""
    vae: VAEConfig = VAEConfig()
    """stage 1"""
    diffusion: DiffusionConfig = DiffusionConfig()
    """stage 2"""
    refiner: RefinerConfig = RefinerConfig()
    """detail of images, if it is trained"""
    evaluate: EvaluateConfig = EvaluateConfig()
    """what is measured"""


def read_recipe(source: str, overrides: Sequence[str] = (), stage: Stage | None = None) -> Recipe:
    """Return the recipe in a YAML file, in a run folder, or of a name that ships with mandorla, changed by `overrides`.

    What it imports is imported. Raises MandorlaError if there is no such recipe, a key is wrong, or an override is of
    no use to the training of `stage`.
    """
    path, shipped = Path(source), {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}
    if source and path.is_dir() and ((path / CONFIG).is_file() or source not in shipped):
        recipe = _load_run(path, overrides)
    elif path.is_file():
        recipe = load_settings(Recipe, path=path, overrides=overrides)
    elif source in shipped:
        recipe = load_settings(Recipe, path=shipped[source], overrides=overrides, folder=Path())
    elif path.suffix in (".yaml", ".yml"):
        hint = did_you_mean(path.name, [file.name for file in path.parent.glob("*.y*ml")])
        raise MandorlaError(f"{source}: no such file{hint}")
    else:
        what = f"no recipe {source!r}" if source else "no recipe is named"
        raise MandorlaError(f"{what}: give a YAML file, a run folder, or one of {', '.join(shipped)}")
    if recipe.run is None:
        gives_data = any(text.partition("=")[0].strip() in ("data", "data.kind") for text in overrides)
        recipe = recipe.model_copy(update={"run": f"runs/{recipe.data.kind if gives_data else path.stem}"})
    if stage:
        _check_used(overrides, stage)
        check_trackers(recipe.track)
    recipe = _with_own_files(recipe, (path.parent, Path()))
    import_all(recipe.imports, source)
    return recipe


def _with_own_files(recipe: Recipe, folders: Sequence[Path]) -> Recipe:
    """Return `recipe` with the files of what is named `module:Class` in it among its imports, if they lie there.

    Installed modules are found wherever they are; a file beside the recipe is remembered by its place.
    """
    model, own = recipe.vae.model, []
    networks = (model.encoder_decoder, *model.encoder_decoder_of.values(), recipe.diffusion.network)
    dataset = [recipe.data.dataset] if isinstance(recipe.data, PythonConfig) else []
    for kind in (*(network.kind for network in networks), *dataset):
        name, separator, _ = kind.partition(":")
        files = [folder / f"{name}{SUFFIX}" for folder in folders] if separator else []  # none for a package's module
        own += [str(file) for file in files if file.is_file()][:1]
    return recipe.model_copy(update={"imports": tuple(dict.fromkeys([*recipe.imports, *own]))})


def read_run(run: Path) -> Recipe:
    """Return the resolved recipe in a run folder; what it imports is imported.

    Raises MandorlaError if `run` is not a run folder, or its recipe is damaged or imports what is not there.
    """
    recipe = _load_run(run)
    import_all(recipe.imports, str(run / CONFIG))
    return recipe


def read_evaluation(run: Path, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """Return what is measured of the run folder `run`, changed by `overrides`, each `evaluate.key=value`.

    Raises MandorlaError if a key is wrong or says something else than what is measured.
    """
    for key in (text.partition("=")[0].strip() for text in overrides):
        block = key.partition(".")[0]
        if block in EvaluateConfig.model_fields:
            raise MandorlaError(f"{COMMAND_LINE}: unknown key `{key}`; did you mean `evaluate.{key}`?")
        if block != "evaluate" and block in Recipe.model_fields:
            raise MandorlaError(
                f"{COMMAND_LINE}: `{key}` {_ELSEWHERE[block]}; `mandorla evaluate` takes evaluate.key=value"
            )
    return _load_run(run, overrides).evaluate


def run_config(run: Path) -> Path:
    """Return the path of the resolved recipe in a run folder. Raises MandorlaError if `run` is not one."""
    if not (run / CONFIG).is_file():
        raise MandorlaError(
            f"{run} is not a run folder (it has no {CONFIG}): give the folder that `mandorla train vae` wrote"
        )
    return run / CONFIG


def make_run(recipe: Recipe) -> Path:
    """Make the run folder of `recipe` and return it. Raises MandorlaError if there can be none of that name."""
    run = Path(recipe.run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MandorlaError(f"{run} cannot be a run folder ({error.strerror}): choose another by run=...") from error
    return run


@contextmanager
def claim_run(recipe: Recipe, stage: Stage) -> Iterator[Path]:
    """Give the run folder of `recipe`; write the resolved recipe into it at the end, unless something inside refuses.

    A training changes what it uses, the device and the evaluation; the rest stays as it was. A training that
    follows stage 1 warns where the recipe says anything else about it than what was trained. Raises MandorlaError if
    the run was begun with other values and something was trained with those: two trainings do not share a folder.
    """
    run, imports = make_run(recipe), settle(recipe.imports)
    if (run / CONFIG).is_file():
        begun = _stored(run)
        for block in dict.fromkeys((*_BLOCKS["vae"], *_BLOCKS[stage])):
            then, now = (_what_matters(getattr(each, block), stage) for each in (begun, recipe))
            if then == now or not is_trained(run, _USED_BY.get(block, "vae")):
                continue
            difference = f"{run} was begun with {_first_difference(block, then, now)}"
            if block in _BLOCKS[stage]:
                raise MandorlaError(
                    f"{difference}: choose another run folder, or delete {run / _USED_BY.get(block, 'vae')} to train it"
                    " anew"
                )
            if stage != "vae":
                warnings.warn(f"{difference}: {_TITLE[stage]} follows what was trained", MandorlaWarning, stacklevel=3)
        there = [name for name in settle(begun.imports) if Path(name).is_file() or not name.endswith(SUFFIX)]
        imports = (*(name for name in there if name not in imports), *imports)  # of other stages; the last name counts
        recipe = begun.model_copy(update={block: getattr(recipe, block) for block in (*_BLOCKS[stage], *_ANY_TIME)})
    data = recipe.data.settle() if isinstance(recipe.data, RootedConfig) else recipe.data
    settled = {"data": data, "imports": imports, "evaluate": recipe.evaluate.settle()}
    recipe = recipe.model_copy(update={"run": ".", **settled})
    yield run
    write_text(run / CONFIG, dump(recipe))


def is_trained(run: Path, stage: Stage) -> bool:
    """Return whether a training of `stage`, or of what it trains first, has kept anything in the run folder `run`."""
    return any(any((run / stage).rglob(name)) for name in (WEIGHTS, STATE, PREVIOUS))


_BLOCKS = {  # what a training depends on
    "vae": ("data", "vae", "seed"),
    "diffusion": ("diffusion", "seed"),
    "refiner": ("refiner", "seed"),
}
_TITLE = {"diffusion": "stage 2", "refiner": "the refiner"}
_ANY_TIME = ("device", "trainer", "evaluate", "track")
_ELSEWHERE = {
    "run": "is the folder that is given first",
    "seed": "was settled when the run was trained",
    "device": "was settled when the run was trained: change it in config.yaml",
    "data": "belongs to `mandorla train vae`: to measure other data, give --data RECIPE",
    "track": "belongs to a training",
    "trainer": "belongs to `mandorla train`",
    "imports": "belongs to `mandorla train vae`",
    "vae": "belongs to `mandorla train vae`",
    "diffusion": "belongs to `mandorla train diffusion`",
    "refiner": "belongs to `mandorla train refiner`",
}
_USED_BY = {"data": "vae", "vae": "vae", "imports": "vae", "diffusion": "diffusion", "refiner": "refiner"}


def _stored(run: Path) -> Recipe:
    """Return the recipe in a run folder as it was written."""
    path = run_config(run)
    tree, _ = read_yaml(path)
    for key in ("data", "vae", "diffusion"):
        if key not in tree:
            raise MandorlaError(
                f"{path} is empty or damaged (it has no `{key}`): restore it, or delete {run} and train anew"
            )
    return load_settings(Recipe, path=path)


def _load_run(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a run folder; where the data's folder is gone, MANDORLA_DATA takes its place."""
    recipe, other = _stored(run), os.environ.get(VARIABLE)
    root = getattr(recipe.data, "root", None)
    moved = [f"data.root={json.dumps(other)}"] if root and other and not Path(root).is_dir() else []
    changes = [*moved, *overrides]
    return load_settings(Recipe, path=run / CONFIG, overrides=changes) if changes else recipe


def _check_used(overrides: Sequence[str], stage: Stage) -> None:
    for key in (text.partition("=")[0].strip() for text in overrides):
        if (other := _USED_BY.get(key.partition(".")[0], stage)) != stage:
            raise MandorlaError(
                f"{COMMAND_LINE}: `{key}` is used by `mandorla train {other}`, not by `mandorla train {stage}`:"
                " give it there"
            )


_HOW_TRAINED = ("checkpoint_every", "picture_every", "cuda_graph", "compile")


def _what_matters(block, stage: Stage):
    """Return a block of settings without what a training of `stage` may change at any time.

    That is where files lie and how they are read, how often a training saves and draws, how its steps are compiled and
    launched, how often samples are encoded for stage 2, and how they are drawn.
    """
    if isinstance(block, RootedConfig):
        return block.model_copy(update=dict.fromkeys(HOW_READ & type(block).model_fields.keys()))
    if not isinstance(block, VAEConfig | DiffusionConfig | RefinerConfig):
        return block
    training = block.training.model_copy(update=dict.fromkeys(_HOW_TRAINED))
    later = dict.fromkeys((HOW_DRAWN | ({"copies"} if stage == "vae" else set())) & type(block).model_fields.keys())
    return block.model_copy(update={"training": training, **later})


def _first_difference(block: str, then, now) -> str:
    if not isinstance(then, Settings):
        return f"{block}={then}, not {now}"
    kinds = tuple(getattr(each, "kind", None) for each in (then, now))
    found = {"kind": kinds} if kinds[0] != kinds[1] else differences(then, now)
    key, (old, new) = next(iter(found.items()))
    return f"{block}.{key}={old}, not {new}"
