"""Two runs side by side: in what their settings differ, what both measured, how their trainings went."""

import json
import math
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import mandorla
from mandorla.charts import panels
from mandorla.config import differences
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.pictures import STAGES, read_log
from mandorla.evaluate.record import FILE, Record, read_records
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.recipe import Recipe, read_run
from mandorla.storage import read_json, write_bytes
from mandorla.tables import print_table

IGNORED = ("run",)  # settings that differ by nature
_SURE = 2.0  # standard errors from which on a difference is more than the chance of test samples

Curve = tuple[list[int], list[float]]  # steps, values


def compare(first: Path, second: Path, out: Path) -> None:
    """Print how two runs differ in settings and figures, and draw the curves of their validations to the PNG `out`.

    Warns of figures that other weights made than those that a run holds. Raises MandorlaError if one of them is no run
    folder, or `out` cannot be written.
    """
    runs = (first, second)
    changed = differences(*map(_as_measured, runs))
    kept = [{record.name: record for record in read_records(run)} for run in runs]
    curves = [read_curves(run) for run in runs]
    names = _names(first, second)
    rows = {key: values for key, values in changed.items() if key.partition(".")[0] not in IGNORED}
    _print("setting", names, {k: [v or "-" for v in values] for k, values in rows.items()}, "settings: no difference")
    for run, records in zip(runs, kept, strict=True):
        if not records:
            print(f"{run} is not evaluated: run `mandorla evaluate {run}`")
        elif not _made_by_its_weights(run):
            warnings.warn(
                f"the figures of {run} are of other weights than it holds now: run `mandorla evaluate {run}`",
                MandorlaWarning,
                stacklevel=2,
            )
    _print("figure", [*names, "difference", "better"], compare_records(*kept), "no figure in both")
    if any(curves):
        write_bytes(out, draw_curves(dict(zip(names, curves, strict=True))))
        print(f"curves: {out}")


def compare_records(a: Mapping[str, Record], b: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return, for each figure that both runs have, both values with standard errors, their difference, who is better.

    No run is better where the difference could be the chance of the test samples alone; that of training seeds is not
    in the standard errors. Figures that are defined otherwise, as a mean of fewer draws is, cannot be compared. Those
    of single views or routes are left out where one sums them up.
    """
    table = {}
    summed = {name.rpartition("/")[0] for name in a if name.count("/") > 1} & a.keys()
    for name in (name for name in a if name in b and name.rpartition("/")[0] not in summed):
        one, other = a[name], b[name]
        difference = other.value - one.value
        if one.definition != other.definition:
            verdict = "measured otherwise"
        elif difference == 0:
            verdict = "equal"
        elif one.error is None or other.error is None:
            verdict = "not known of so few"
        elif abs(difference) <= _SURE * math.hypot(one.error, other.error):
            verdict = "as likely chance"
        else:
            verdict = "neither" if one.merit == other.merit else "second" if one.merit < other.merit else "first"
        values = [record.measured for record in (one, other)]
        table[name] = [*values, f"{difference:+.3g}", verdict]
    return table


def read_curves(run: Path) -> dict[str, Curve]:
    """Return the figures of all validations of a run, `stage 1, loss` and so on, as steps and values."""
    curves: dict[str, Curve] = {}
    for stage, title in STAGES.items():
        for step, part, figures in read_log(run / stage):
            for name, value in figures.items() if part == "val" else ():
                steps, row = curves.setdefault(f"{title}, {name}", ([], []))
                steps.append(step)
                row.append(value)
    return curves


def draw_curves(curves: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """Return a PNG with a panel for each figure and in it a line for each run, `curves[run][figure]`."""

    def draw(name: str, axes) -> None:
        for (run, of_run), style in zip(curves.items(), ("C0-", "C1--"), strict=True):
            if name in of_run:
                axes.plot(*of_run[name], style, marker=".", label=run)

    return panels({name: partial(draw, name) for of_run in curves.values() for name in of_run})


def _as_measured(run: Path) -> Recipe:
    """Return the recipe of a run, its `evaluate` as that was for the figures that are there."""
    recipe = read_run(run)
    try:
        settings = read_json(run / FILE)["settings"]
        return recipe.model_copy(update={"evaluate": EvaluateConfig.model_validate_json(json.dumps(settings))})
    except (MandorlaError, KeyError, ValueError):  # not evaluated, or by another version
        return recipe


def _made_by_its_weights(run: Path) -> bool:
    """Return whether the figures of a run are of the weights that it holds; earlier versions did not note it."""
    made_by = read_json(run / FILE).get("weights")
    if made_by is None:
        return True
    try:
        model = mandorla.load(run)
        return made_by == (model.hashes if "diffusion" in made_by else model.hashes_of_decoding)
    except MandorlaError:  # as where stage 1 was trained anew and stage 2 not yet
        return False


def _names(first: Path, second: Path) -> list[str]:
    """Return short names of the runs that tell them apart."""
    names = [first.resolve().name, second.resolve().name]
    return names if names[0] != names[1] else [str(first), f"{second} (second)" if first == second else str(second)]


def _print(what: str, columns: list[str], rows: Mapping[str, list[str]], none: str) -> None:
    if not rows:
        return print(none)
    print_table([what, *columns], [[name, *cells] for name, cells in rows.items()], justify="left")
