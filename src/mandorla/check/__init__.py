"""`mandorla data check`: look at data before a training, say what is wrong, and propose a recipe that trains.

The data are those of a recipe, or of a folder, of which a recipe is guessed. The proposed recipe is the given one (or
the shipped `folders`, with networks for the shapes that were found), changed as the facts ask for. What is wrong is
judged under the given recipe; where it was guessed, under the proposed one.
"""

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mandorla.check.advice import LARGEST, Problem, advise, judge
from mandorla.check.facts import Facts, examine
from mandorla.check.guess import TABLES, Guess, guess
from mandorla.check.page import Findings, print_page, render
from mandorla.check.source import Stock, take_stock
from mandorla.config import CONFIG, dump_brief
from mandorla.data.geometry import PLANES
from mandorla.errors import MandorlaError
from mandorla.imports import settle
from mandorla.recipe import Recipe, read_recipe
from mandorla.storage import write_text
from mandorla.vae.model import check_names

BASE = "folders"  # recipe that a guess starts from
PAGE = Path("data-check.html")
PLAIN = {"size": None, "intensity": {"kind": "none"}}  # data as they are, whatever the base makes of them
NUM_TRIES = 20  # rows of which one must be readable to tell whether there are volumes
THICK = 1.5  # how many times as long as others the edge of a voxel is that lies across thick slices
SMALLEST_MAP = 16  # values per axis from which latents are maps


def check_data(
    source: str, overrides: Sequence[str] = (), out: Path | None = None, recipe_out: Path | None = None
) -> bool:
    """Check the data of `source`, print what was found, write the page to `out`; return whether they can be trained on.

    `source` is a recipe as `read_recipe` takes it, or a folder or list of files; `overrides` change the recipe, also a
    guessed one. The proposed recipe is written to `recipe_out`, if given. Raises `MandorlaError` if `source` is
    neither, an override is wrong, or a file cannot be written.
    """
    page = PAGE if out is None else out
    for path in filter(None, (page, recipe_out)):
        if path.is_dir() or not path.parent.is_dir():
            raise MandorlaError(f"{path}: no file can be written there; name one in a folder that exists")
    if recipe_out is not None and recipe_out.exists():
        raise MandorlaError(f"{recipe_out}: exists already; name another file, or remove this one")
    findings = find_out(source, overrides, recipe_out)
    written = {page: render(findings)}
    if recipe_out is not None and findings.config:
        written[recipe_out] = findings.config
    for path, text in written.items():
        write_text(path, text)
    print_page(findings)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return not findings.num_mend


def find_out(source: str, overrides: Sequence[str] = (), recipe_out: Path | None = None) -> Findings:
    """Return what the data of `source` hold, what is wrong with them, and a recipe for them, to be `recipe_out`."""
    guessed = _guess(source, any(text.startswith("data.") for text in overrides))
    base, given = (source, list(overrides)) if guessed is None else (BASE, [*_first(source, guessed), *overrides])
    recipe = read_recipe(base, given)
    taken = _taken(source, guessed, recipe)
    try:
        stock = take_stock(recipe.data, recipe.seed)
        if guessed and (cut := _cut(stock)):
            given.append(cut)
            recipe = read_recipe(base, given)
            stock = take_stock(recipe.data, recipe.seed)
        facts = examine(stock, recipe.data, recipe.seed)
    except MandorlaError as error:
        problem = Problem("mend", str(error), [], "nothing more can be said before")
        return Findings(source, taken, None, [problem], [], "", "")
    changes = advise(facts, recipe.data, guessed is not None)
    asked = [f"{change.key}={json.dumps(change.value)}" for change in changes]
    networks = _networks(facts, changes, overrides) if guessed else []
    folder = recipe_out.parent if recipe_out else Path()
    proposed = _settle(read_recipe(base, [*given, *networks, *asked]), folder)
    problems = [*_misnamed(facts), *judge(facts, proposed.data if guessed else recipe.data)]
    name = shlex.quote(str(recipe_out or "mine.yaml"))
    advice = f"{'This is' if recipe_out else 'Save this as'} {name}; then: mandorla train vae {name}"
    return Findings(source, taken, facts, problems, changes, dump_brief(proposed), advice)


def _misnamed(facts: Facts) -> list[Problem]:
    """Return what is wrong with the names of the modalities, if anything is."""
    try:
        check_names([modality.name for modality in facts.modalities])
    except MandorlaError as error:
        return [Problem("mend", str(error), [], "for folders as in data.folders={NAME: FOLDER}")]
    return []


def _guess(source: str, changed: bool) -> Guess | None:
    """Return what a folder or a list of files seems to be; None for what can only be a recipe or a run.

    `changed` says that overrides change it.
    """
    path = Path(source)
    if path.is_dir() and not (path / CONFIG).is_file():
        return guess(path, changed)
    if path.is_file() and path.suffix.lower() in (*TABLES, ".json"):
        return guess(path, changed)
    return None


def _first(source: str, guessed: Guess) -> list[str]:
    """Return the overrides that make the base recipe one for what was guessed."""
    path = Path(source).resolve()
    name = re.sub(r"[^\w-]+", "-", path.name if path.is_dir() else path.parent.name).strip("-") or "mine"
    return [f"run={json.dumps(f'runs/{name}')}", f"data={json.dumps(PLAIN | guessed.data)}"]


def _taken(source: str, guessed: Guess | None, recipe: Recipe) -> list[str]:
    if guessed is None:
        return [f"data of the recipe, kind: {recipe.data.kind}"]
    return [
        f"taken for kind: {recipe.data.kind} ({guessed.why})",
        "say otherwise with changes behind the folder, such as data.key=..., or by a recipe in its place",
    ]


def _settle(recipe: Recipe, folder: Path) -> Recipe:
    """Return `recipe` so that it means the same in a file in `folder`; what it reads has absolute paths there."""
    data = recipe.data.settle() if getattr(recipe.data, "root", None) else recipe.data
    run = recipe.run if Path(recipe.run).is_absolute() else os.path.relpath(recipe.run, folder)
    settled = {"data": data, "imports": settle(recipe.imports), "evaluate": recipe.evaluate.settle(), "run": run}
    return recipe.model_copy(update=settled)


def _cut(stock: Stock) -> str:
    """Return the override that cuts volumes into slices, if they are large; empty if not, or if nothing can be read."""
    for task in stock.tasks[:NUM_TRIES]:
        seen = stock.see(*task, 0, False)
        for looks in seen.looks.values():
            size = looks[0].shape[1:]
            if len(size) != 3 or max(size) <= LARGEST[3]:
                return ""
            return f"data.slices={{axis: {_plane(seen.spacing, seen.axes) if seen.axes else 0}}}"
    return ""


def _plane(spacing: Sequence[float], axes: str) -> str:
    """Return the plane that volumes were taken in: across the one edge of their voxels that is long, else axial."""
    *_, middle, longest = sorted(spacing)
    across = axes[spacing.index(longest)] if longest > THICK * middle else "S"
    return next(plane for plane, letters in PLANES.items() if across in letters)


def _networks(facts: Facts, changes: Sequence[Any], overrides: Sequence[str]) -> list[str]:
    """Return the settings of both stages for data of these shapes, unless `overrides` speak of them."""
    if any(text.startswith(("vae.", "diffusion.", "vae=", "diffusion=")) for text in overrides):
        return []
    size = next((change.value for change in changes if change.key == "data.size"), None)
    sizes = {m.name: tuple(size or m.shape[1:]) for m in facts.modalities if m.shapes}
    if not sizes:
        return []
    first = next(iter(sizes.values()))
    settings: list[str] = []
    if len(set(sizes.values())) > 1 or len(first) < 2 or min(first) < SMALLEST_MAP:
        flat = {name: {"kind": "perceptron"} for name, own in sizes.items() if not own or min(own) < SMALLEST_MAP}
        widths = "[64]" if any(len(own) == 3 for own in sizes.values()) else "[32, 64, 128]"
        settings += [
            "vae.model.shared={channels: 16, stride: null}",
            "vae.model.private={channels: 16, stride: null}",
            f"vae.model.encoder_decoder={{kind: convolutional, patch: 2, channels: {widths}, num_blocks: 0}}",
            f"vae.model.encoder_decoder_of={json.dumps(flat)}",
        ]
    elif len(first) == 3:
        widths = "[32, 64]" if min(first) > SMALLEST_MAP else "[64]"
        settings += [
            "vae.model.shared={channels: 8, stride: 4}",
            "vae.model.private={channels: 4, stride: 8}",
            f"vae.model.encoder_decoder={{kind: convolutional, patch: 4, channels: {widths}, num_blocks: 1}}",
            "vae.training.batch_size=4",
            "diffusion.training.batch_size=8",
        ]
    label = next((label.name for label in facts.labels if label.is_class and len(label.counts) > 1), None)
    return settings + ([f"evaluate.label={json.dumps(label)}"] if label else [])
