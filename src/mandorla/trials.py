"""Stage 1 trained many times, to choose latent sizes (*sweep*) or to see what each term is worth (*ablation*).

A trial is the recipe with a few changes; with several seeds it is trained with each. All trials are measured alike, on
validation data and with the same judges:

    RUN/sweep/NAME/seed0, ...   a run folder per trial and seed, and in it `trial.json`: its figures
    RUN/sweep.json, sweep.md    the table, written anew after every trial
    RUN/judges/seed0.safetensors, ...   the classifiers that all trials are judged by

The same for `ablate`. The same call again takes up what was interrupted and does not repeat what is finished.
"""

import json
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mandorla.data import load_data
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.judges import find_gauges, find_judges
from mandorla.evaluate.record import Record
from mandorla.evaluate.stage1 import stage1_figures
from mandorla.model import load
from mandorla.recipe import HOW_READ, Recipe
from mandorla.storage import read_json, write_text
from mandorla.tables import markdown_head, markdown_row, print_table
from mandorla.vae.training import fit_vae

Read = Callable[[Sequence[str]], Recipe]  # the recipe, changed by `key.sub=value`
Kind = Literal["sweep", "ablate"]

ABLATIONS = {
    "no agreement": "vae.loss.agreement_weight=0",
    "agreement not first": "vae.loss.agreement_first=0",
    "c from all, no subsets": "vae.loss.subsets=false",
    "target not detached": "vae.loss.target_gradient=1",
    "no KL": "vae.loss.kl_weight=0",
    "q(u given x) without c": "vae.model.posterior_sees_shared=false",
    "no swap": "vae.loss.swap_weight=0",
    "no leak bound": "vae.loss.leak_weight=0",
    "no noise on c": "vae.loss.shared_noise=0",
    "u never left out": "vae.loss.private_dropout=0",
    "no alignment": "vae.loss.alignment_weight=0",
    "c not distilled": "vae.distillation=null",
}
FULL = "full"
_FILE = "trial.json"


@dataclass(frozen=True)
class Trial:
    """Hold a trial's name and the `changes` to the recipe, each `key.sub=value`."""

    name: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """Hold a trial with its figures by name, one `Record` per seed."""

    trial: Trial
    figures: dict[str, list[Record]]

    def mean(self, *names: str) -> float | None:
        """Return the mean over seeds of the first of these figures that was measured; None if none was."""
        found = next((self.figures[name] for name in names if name in self.figures), None)
        return found and statistics.mean(record.value for record in found)

    @property
    def numbers(self) -> float | None:
        """Return how many numbers the latents of a sample have."""
        return self.mean("latents/numbers")

    @property
    def psnr(self) -> float | None:
        """Return the likeness of reconstructions in dB."""
        return self.mean("reconstruction/psnr")

    @property
    def leak(self) -> float | None:
        """Return how much u knows of the class or, without classes, how much of u is known from c; at least chance."""
        found = [self.figures[name][0] for name in LEAK if name in self.figures]
        return max(self.mean(*LEAK), found[0].chance or 0.0) if found else None

    @property
    def coherence(self) -> float | None:
        """Return how often decoded views keep the class of c or, without classes, how much of c they keep."""
        return self.mean(*COHERENCE)


LEAK = ("private/class mlp", "separation/private_known")
COHERENCE = ("coherence/cross shuffled", "separation/shared_kept")
TOLERANCES = {"psnr": 0.5, "coherence": 0.02, "leak": 0.02}
RULE = (
    f"fewest latent numbers among the trials whose reconstruction is within {TOLERANCES['psnr']} dB and whose coherence"
    f" is within {TOLERANCES['coherence']} of the best, and whose leak is at most {TOLERANCES['leak']} above the least"
)


def size_trials(read: Read, grid: Sequence[str] = ()) -> list[Trial]:
    """Return the trials of a grid of latent sizes: every combination of the values in `grid`, each `key.sub=a,b,...`.

    By default shared and private channels at half, the same and double of the recipe's. Raises MandorlaError where an
    entry is not of that form.
    """
    axes = [_axis(text) for text in grid] or _default_axes(read(()))
    trials = []
    for choice in product(*axes):
        names, changes = zip(*choice, strict=True)
        trials.append(Trial("_".join(names), tuple(change for each in changes for change in each)))
    return trials


def ablation_trials(read: Read) -> list[Trial]:
    """Return the recipe itself, and it with each term off that it has on."""
    whole = read(()).vae
    return [Trial(FULL), *(Trial(n, (change,)) for n, change in ABLATIONS.items() if read((change,)).vae != whole)]


def run_trials(kind: Kind, trials: Sequence[Trial], read: Read, num_seeds: int = 1) -> list[Result]:
    """Train and measure all `trials` with as many seeds, from the recipe's upward; write and print the table.

    A trial that cannot be trained or measured is warned of and left out. Raises MandorlaError, before anything is
    trained, if a trial's settings are wrong, and if no trial is left.
    """
    base = read(())
    run, seeds = Path(base.run), range(base.seed, base.seed + num_seeds)
    recipes = {
        (trial, seed): read((*trial.changes, f"seed={seed}", f"run={json.dumps(str(_folder(run, kind, trial, seed)))}"))
        for trial in trials
        for seed in seeds
    }
    console, results, bench = Console(markup=False), [], _Bench(run)
    for number, trial in enumerate(trials, 1):
        measured = []
        try:
            for seed in seeds:
                console.rule(f"{number} of {len(trials)}: {trial.name}, seed {seed}")
                measured.append(bench.measure(recipes[trial, seed]))
        except MandorlaError as error:
            if number == len(trials) and not results:
                raise
            warnings.warn(f"{trial.name} is left out: {error}", MandorlaWarning, stacklevel=2)
            continue
        common = [name for name in measured[0] if all(name in records for records in measured)]
        results.append(Result(trial, {name: [records[name] for records in measured] for name in common}))
        _write(run / kind, results, base, num_seeds)
    advice = recommend(results)[1] if kind == "sweep" else ""
    print_results(results)
    console.print(*([advice] if advice else []), f"table: {run / kind}.md", sep="\n", highlight=False, soft_wrap=True)
    return results


def recommend(results: Sequence[Result]) -> tuple[Result, str]:
    """Return the result to take, by `RULE`, and a sentence that says why.

    Where none is good enough in all three, it is the one that misses by least, in units of the tolerances. What was not
    measured of all, as the leak of the samples of a single patient, does not count.
    """
    best = {}
    for key, better in {"psnr": max, "coherence": max, "leak": min}.items():
        values = [getattr(result, key) for result in results]
        best |= {} if None in values else {key: better(values)}
    misses = {}
    for number, result in enumerate(results):
        away = {key: abs(getattr(result, key) - value) for key, value in best.items()}
        misses[number] = max((away[key] / TOLERANCES[key], key, away[key]) for key in away)
    good = [number for number, (miss, _, _) in misses.items() if miss <= 1 + 1e-9]
    if good:
        chosen = min(good, key=lambda number: (results[number].numbers, misses[number][0]))
        why = f"the {RULE}"
    else:
        chosen = min(misses, key=lambda number: (misses[number][0], results[number].numbers))
        _, key, away = misses[chosen]
        why = f"no trial is the {RULE}; this one misses by least ({key} {away:.3g} from the best)"
    trial = results[chosen].trial
    return results[chosen], f"recommended: {trial.name} ({' '.join(trial.changes)}): {why}"


class _Bench:
    """Train and measure trials of one base recipe; keep the data of a seed and its judges at hand."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.data: dict[int, Any] = {}  # of the last seed: the data of all may not fit into memory

    def measure(self, recipe: Recipe) -> dict[str, Record]:
        """Return the figures of a trial by name, those that its folder keeps if they are of these settings."""
        folder = Path(recipe.run)
        if recipe.seed not in self.data:
            self.data = {recipe.seed: load_data(recipe.data, recipe.seed)}
        kept, made_from = _kept(folder), _made_from(recipe, self.data[recipe.seed].fingerprint)
        if kept.get("made_from") == made_from:
            return {record["name"]: Record(**record) for record in kept["records"]}
        began = time.perf_counter()
        try:
            splits = fit_vae(recipe, self.data[recipe.seed])
        finally:
            kept |= {"seconds": kept.get("seconds", 0.0) + time.perf_counter() - began}
            if folder.is_dir():
                write_text(folder / _FILE, json.dumps(kept))
        model = load(folder)
        judges, gauges = (
            find(self.run / kind / f"seed{recipe.seed}.safetensors", splits, recipe.evaluate, recipe.seed, model.device)
            for kind, find in (("judges", find_judges), ("gauges", find_gauges))
        )
        records = stage1_figures(model, judges, gauges, splits)
        seconds, text = kept["seconds"], "Seconds of training, on whatever machine this was."
        records.append(Record("training/seconds", seconds, 0.0, 1, text, "lower", unit="s", seed=recipe.seed))
        kept |= {"made_from": made_from, "records": [record.to_json() for record in records]}
        write_text(folder / _FILE, json.dumps(kept, indent=1))
        return {record.name: record for record in records}


def _kept(folder: Path) -> dict[str, Any]:
    return read_json(folder / _FILE) if (folder / _FILE).is_file() else {}


def _made_from(recipe: Recipe, fingerprint: str) -> dict[str, Any]:
    """Return what figures depend on: settings, and a hash of the data."""
    settings = recipe.model_dump(mode="json", include={"seed", "data", "vae", "evaluate"})
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in HOW_READ}
    return settings | {"contents": fingerprint}


def _folder(run: Path, kind: Kind, trial: Trial, seed: int) -> Path:
    return run / kind / re.sub(r"[^\w.=+-]+", "_", trial.name) / f"seed{seed}"


def _axis(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return name and changes of each value of `key.sub=a,b,...`."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key.startswith("vae.") or not all(value.strip() for value in values.split(",")):
        raise MandorlaError(f"--grid: expected vae.key.sub=value,value,... such as {_EXAMPLE}, got {text!r}")
    short = key.removeprefix("vae.").removeprefix("model.").removesuffix(".channels")
    return [(f"{short}={value.strip()}", (f"{key}={value.strip()}",)) for value in values.split(",")]


_EXAMPLE = "vae.model.shared.channels=8,16"


def _default_axes(recipe: Recipe) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Return half, same and double of the channels of c, and of every u together."""
    model = recipe.vae.model
    private = {f"private_of.{name}": latent for name, latent in model.private_of.items()}
    axes = []
    for name, latents in (("shared", {"shared": model.shared}), ("private", {"private": model.private} | private)):
        axis = {}
        for factor in (0.5, 1, 2):
            sizes = {key: max(1, round(latent.channels * factor)) for key, latent in latents.items()}
            changes = tuple(f"vae.model.{key}.channels={size}" for key, size in sizes.items())
            axis[changes] = f"{name}={sizes[name]}"
        axes.append([(label, changes) for changes, label in axis.items()])
    return axes


def _columns(results: Sequence[Result]) -> dict[str, str]:
    """Return the figures that the table shows, each with its header: those that every trial has."""
    private = next((n.split("/")[1] for n in results[0].figures if re.fullmatch(r"private/(?!class)\w+", n)), "")
    columns = {
        "latents/numbers": "latent numbers",
        "latents/rate": "rate of u, nats",
        "reconstruction/psnr": "PSNR, dB",
        "shared/class": "c → class",
        "private/class linear": "u → class",
        "private/class mlp": "u → class, MLP",
        f"private/{private}": f"u → {private}",
        f"shared/{private}": f"c → {private}",
        "coherence/self shuffled": "self, u shuffled",
        "coherence/cross shuffled": "cross, u shuffled",
        "coherence/cross prior": "cross, u of N(0, I)",
        "separation/shared_kept": "shared kept",
        "separation/private_kept": "private kept",
        "separation/private_known": "private known",
        "training/seconds": "seconds",
    }
    return {name: text for name, text in columns.items() if all(name in result.figures for result in results)}


_DIGITS = {"latents/numbers": 0, "latents/rate": 1, "reconstruction/psnr": 2, "training/seconds": 0}


def _spread(name: str, values: Sequence[float]) -> str:
    """Return the mean of a figure over seeds, ± its standard deviation where there are several."""
    digits = _DIGITS.get(name, 3)
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and name != "latents/numbers" else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def _rows(results: Sequence[Result], columns: Mapping[str, str]) -> list[list[str]]:
    rows = [
        [result.trial.name, *(_spread(name, [record.value for record in result.figures[name]]) for name in columns)]
        for result in results
    ]
    for key in ("chance", "ceiling"):
        known = {
            name: [getattr(record, key) for result in results for record in result.figures[name]] for name in columns
        }
        if any(value is not None for values in known.values() for value in values):
            means = (f"{statistics.mean(v):.3f}" if None not in v else "" for v in known.values())
            rows.append([f"*{key}*", *means])
    return rows


def print_results(results: Sequence[Result]) -> None:
    """Print the figures that decide, as the file of the table has them all."""
    shown = ("latents/numbers", "latents/rate", "reconstruction/psnr", "shared/class", "training/seconds")
    measured = results[0].figures
    decisive = [next((n for n in names if n in measured), "") for names in (LEAK, COHERENCE)]
    columns = {n: text for n, text in _columns(results).items() if n in (*shown, *decisive)}
    rows = [[cell.strip("*") for cell in row] for row in _rows(results, columns)]
    print_table(["trial", *columns.values()], rows)


def _write(path: Path, results: Sequence[Result], recipe: Recipe, num_seeds: int) -> None:
    """Write the table as Markdown and all figures as JSON."""
    columns = _columns(results)
    kind = recipe.data.kind
    training, distil = recipe.vae.training, recipe.vae.distillation
    more = distil and f", {distil.steps} of distillation of {distil.batch_size} samples, {distil.steps_after} after it"
    lines = [
        f"# {'Latent sizes' if path.name == 'sweep' else 'Ablation'} of stage 1 on {kind}",
        "",
        f"{training.steps} steps of {training.batch_size} samples{more or ''}, {num_seeds} seed(s) from {recipe.seed}"
        f"{'; mean ± standard deviation over seeds' if num_seeds > 1 else ''}. Stage 1 alone, on validation data.",
        "",
        *markdown_head(["trial", *columns.values()]),
        *map(markdown_row, _rows(results, columns)),
        "",
        *(f"- {text}: {results[0].figures[name][0].definition}" for name, text in columns.items()),
    ]
    chosen: dict[str, Any] = {}
    if path.name == "sweep":
        result, advice = recommend(results)
        chosen = {"recommended": result.trial.name, "rule": RULE}
        lines += ["", advice]
    content = {
        "trials": [
            {
                "name": result.trial.name,
                "changes": result.trial.changes,
                "records": [record.to_json() for records in result.figures.values() for record in records],
            }
            for result in results
        ]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")
    write_text(path.with_suffix(".json"), json.dumps(chosen | content, indent=1))
