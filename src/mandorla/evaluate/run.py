"""The evaluation of a run: measure, draw, write `metrics.json`, `pictures/` and `report.html`."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mandorla.config import dump
from mandorla.data import load_data
from mandorla.data.dataset import Splits
from mandorla.data.record import recorded_fingerprint
from mandorla.data.stored import StoredDataset, with_intensity
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.audit import LEVEL
from mandorla.evaluate.features import OnnxNetwork
from mandorla.evaluate.figures.classes import class_figures
from mandorla.evaluate.figures.coherence import coherence_figures
from mandorla.evaluate.figures.copies import copy_figures
from mandorla.evaluate.figures.fidelity import fidelity_figures
from mandorla.evaluate.figures.lesions import lesion_figures
from mandorla.evaluate.figures.quantities import quantity_figures
from mandorla.evaluate.figures.separation import (
    explained_figures,
    information_figures,
    retrieval_figures,
    separation_figures,
)
from mandorla.evaluate.figures.subject import JUDGED, Subject
from mandorla.evaluate.figures.translation import translation_figures
from mandorla.evaluate.gather import whose
from mandorla.evaluate.pictures import Picture, draw_all
from mandorla.evaluate.protocol import protocol
from mandorla.evaluate.record import FILE, Record
from mandorla.evaluate.report import print_summary, render
from mandorla.evaluate.settings import SUITES, EvaluateConfig, Suite
from mandorla.model import Mandorla, load
from mandorla.parallel import alike, is_first, led
from mandorla.progress import progress_bar
from mandorla.recipe import read_evaluation, read_recipe
from mandorla.storage import locked, read_json, write_bytes, write_text

Progress = Callable[[str, float], None]  # what is done next, and the share of all work that is behind
PICTURES, REPORT = "pictures", "report.html"
_AUDITED = ("pixels", "features")  # spaces in which an audit looks for copies

_PREPARED: dict[str, tuple[int, set[Suite]]] = {  # properties of a `Subject`: about how long each takes, who needs it
    "judges": (40, JUDGED),
    "gauges": (10, {"disentanglement"}),
    "codes": (5, {"disentanglement", "coherence", "translation"}),
    "samples": (5, {"coherence", "fidelity", "audit"}),
    "translations": (10, {"translation"}),
    "baseline_translations": (1, {"translation"}),
}
_FIGURES: dict[Suite, tuple[int, Callable[[Subject], list[Record]]]] = {
    "disentanglement": (
        15,
        lambda s: [
            *class_figures(s.codes),
            *quantity_figures(s.codes),
            *separation_figures(s.codes, s.data.test),
            *retrieval_figures(s.codes),
            *information_figures(s),
            *explained_figures(s),
            *lesion_figures(s),
        ],
    ),
    "coherence": (10, coherence_figures),
    "fidelity": (8, fidelity_figures),
    "translation": (3, translation_figures),
    "audit": (6, copy_figures),
}


def evaluate(
    run: Path | str,
    overrides: Sequence[str] = (),
    data: str | None = None,
    baseline: Path | str | None = None,
    out: Path | None = None,
) -> list[Record]:
    """Evaluate the run folder `run` with a progress bar, print what matters most and the report, return all figures.

    `overrides` (`evaluate.key=value`) hold for this call; `data` is a recipe whose test part is measured instead of the
    run's own; `baseline` another run of the same data, whose translations are compared in pairs; `out` the folder that
    is written to, by default `run`, for other data `run`/other: the run's own figures stay. Processes that work
    together divide what goes through the networks, whole batches each: figures are those of one. Raises MandorlaError
    where these do not fit.
    """
    settings = read_evaluation(Path(run), overrides)
    model = load(run)
    if _asks_stage_2(settings):
        model.sample(1)  # stage 2 is there: better known before minutes of training classifiers
    rival = load(baseline) if baseline else None
    splits = other_data(model, data) if data else None
    with progress_bar() as bar, alike():
        task = bar.add_task("evaluate", total=1)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        changed = [*overrides, *([f"--data {data}"] if data else [])]
        out = out or (Path(run) / "other" if data else None)
        metrics = evaluate_run(model, settings, progress, splits, rival, out, changed)
    records = [Record(**record) for record in metrics["records"]]
    print_summary(records)
    print(f"report: {(out or Path(run)) / 'report.html'}")
    return records


def audit_run(run: Path | str, overrides: Sequence[str] = (), threshold: float = 0.05, out: Path | None = None) -> bool:
    """Look for copies of training samples among generated ones; return whether there are no more than `threshold`.

    What is compared is the share of samples that stand closer to one training sample, beside the next ones, than 99 of
    100 unseen real ones do, in pixels and in features. A greater share fails unless it may be chance, as of few unseen
    samples it may: of models whose samples are like unseen ones, one in twenty fails at most. Writes a report into
    `out`, by default the folder `audit` in the run. Raises MandorlaError where no sample has all modalities, and where
    the test samples are too few, or of too few patients, to tell even nothing but copies from chance.
    """
    out = out or Path(run) / "audit"
    found = {record.name: record for record in evaluate(run, [*overrides, "evaluate.suites=[audit]"], out=out)}
    if not found:
        raise MandorlaError(f"{run}: no sample of its data has all modalities, so that tuples cannot be compared")
    noticed = [found[name].value for space in _AUDITED if (name := f"copies/noticed in {space}") in found]
    if not noticed:
        raise MandorlaError(
            f"{run}: its test samples are too few, or of too few patients, for an audit: not even if all samples were"
            " copies could that be told from chance; hold out more"
        )
    if min(noticed) > threshold:
        warnings.warn(
            f"{run}: beside so few test samples, or of so few patients, a share of copies below {min(noticed):.2f} goes"
            " unnoticed; hold out more",
            MandorlaWarning,
            stacklevel=2,
        )
    shares = [found[f"copies/ratio in {space}"] for space in _AUDITED]
    return not any(share.value > threshold and share.p <= LEVEL for share in shares)


def evaluate_run(
    model: Mandorla,
    settings: EvaluateConfig,
    progress: Progress | None = None,
    data: Splits | None = None,
    baseline: Mandorla | None = None,
    out: Path | None = None,
    changed: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure `model` on the test part of `data`, by default its own, and write what was found into `out`.

    Returns what `metrics.json` holds: `records`, `settings`, what of them was `changed` for this call, `seed`, hashes
    of the `weights`, names of the `pictures`, and `seconds` by step. `out` is by default the run folder. Raises
    `MandorlaError` where settings, data or baseline do not fit the model.
    """
    _check(model, settings, baseline)
    out = Path(out or model.run)
    with led(_writable(out), out):
        return _evaluate(model, settings, progress, data, baseline, out, changed)


def _evaluate(
    model: Mandorla,
    settings: EvaluateConfig,
    progress: Progress | None,
    data: Splits | None,
    baseline: Mandorla | None,
    out: Path,
    changed: Sequence[str],
) -> dict[str, Any]:
    clock = _Clock(progress or (lambda what, share: None), settings.suites)
    found: dict[Suite, list[Record]] = {}
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):  # its threads wait for each other, long
        warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: test samples are what they are
        clock.start("data")
        subject = Subject(model, data or model.data(), settings, baseline)
        for name, (_, suites) in _PREPARED.items():
            if suites & set(settings.suites):
                clock.start(name)
                getattr(subject, name)
        for suite, (_, figures) in _FIGURES.items():
            if suite in settings.suites:
                clock.start(suite)
                found[suite] = figures(subject)
        clock.start("pictures")
        pictures = draw_all(subject)
    clock.start("done")
    every = [record for of_suite in found.values() for record in of_suite]
    records = [record for record in every if math.isfinite(record.value)]
    undefined = [record.name for record in every if not math.isfinite(record.value)]
    notes = protocol(subject, {record.group for record in records})
    if undefined:
        notes.append(f"Left out: {', '.join(undefined)}; not defined on these samples, as where none has a lesion.")
    metrics = {
        "records": [record.to_json() for record in records],
        "settings": settings.model_dump(mode="json"),
        "changed": list(changed),
        "data": model.recipe.data.kind if data is None else "other",
        "baseline": str(baseline.run) if baseline else None,
        "seed": subject.seed,
        "weights": model.hashes if _asks_stage_2(settings) else model.hashes_of_decoding,
        "pictures": [picture.name for picture in pictures],
        "seconds": clock.seconds,
    }
    if is_first():
        facts = _facts(subject, metrics)
        page = render(Path(model.run).resolve().name, records, pictures, notes, facts, dump(model.recipe))
        _write(out, page, pictures, metrics)
    return metrics


def _asks_stage_2(settings: EvaluateConfig) -> bool:
    return set(settings.suites) != {"disentanglement"}


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Keep other evaluations from the folder `out`, which is made; raise MandorlaError at once if it is no place."""
    place = out / PICTURES
    try:
        place.mkdir(parents=True, exist_ok=True)
        (probe := place / ".probe").touch()
        probe.unlink()
    except OSError as error:
        raise MandorlaError(f"{out} cannot be written ({error}): give --out another folder") from error
    with locked(place):
        yield


def _facts(subject: Subject, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what the report says at its top of this evaluation."""
    whole = subject.data.test
    patients = len(np.unique(whose(whole, np.arange(len(whole)))))
    facts = {
        "seed": subject.seed,
        "data": metrics["data"],
        "modalities": ", ".join(subject.names),
        "test samples": f"{len(whole)} of {patients} patients" if patients < len(whole) else len(whole),
        "evaluated in": f"{sum(metrics['seconds'].values()):.0f} s",
    }
    if len(subject.settings.suites) < len(SUITES):
        facts["measured"] = ", ".join(subject.settings.suites)
    if metrics["changed"]:
        facts["for this call"] = " ".join(metrics["changed"])
    return facts


def _write(out: Path, page: str, pictures: Sequence[Picture], metrics: dict[str, Any]) -> None:
    """Write the report, the pictures, in the place of those of before, and last the figures."""
    old = _pictures_of_before(out) - {picture.name for picture in pictures}
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write_bytes(out / PICTURES / f"{picture.name}.png", picture.png)
    for path in (out / PICTURES).glob("*.png"):  # of this folder alone, whatever its metrics.json names
        if path.stem in old:
            path.unlink()
    write_text(out / REPORT, page)
    write_text(out / FILE, json.dumps(metrics, indent=1) + "\n")


def _pictures_of_before(out: Path) -> set[str]:
    """Return the names of the pictures of an earlier evaluation; none where its `metrics.json` is damaged."""
    try:
        names = read_json(out / FILE)["pictures"]
    except (MandorlaError, KeyError):
        return set()
    return {str(name) for name in names} if isinstance(names, list) else set()


def _check(model: Mandorla, settings: EvaluateConfig, baseline: Mandorla | None) -> None:
    """Raise MandorlaError, before anything is computed, where something does not fit the model."""
    names = [modality.name for modality in model.modalities]
    for name in (name for route in settings.routes for name in route):
        if name not in names:
            raise MandorlaError(f"evaluate.routes: unknown modality {name!r}; this model has {', '.join(names)}")
    if same := [given for given, wanted in settings.routes if given == wanted]:
        raise MandorlaError(f"evaluate.routes: {same[0]} to {same[0]} is no translation: name two modalities")
    if "fidelity" in settings.suites:
        for path in settings.features.values():
            OnnxNetwork(Path(path))
    if baseline:
        if "translation" not in settings.suites:
            raise MandorlaError("a baseline is compared in translation: add it to --suite, or leave --baseline out")
        if baseline.modalities != model.modalities or recorded_fingerprint(baseline.run) != recorded_fingerprint(
            model.run
        ):
            raise MandorlaError(
                f"{baseline.run}: was trained on other data, or on another division of them, than {model.run}; a"
                " baseline needs the same data settings and seed"
            )


def other_data(model: Mandorla, source: str) -> Splits:
    """Return the run's data with the test part of the recipe `source`, on the run's scale of intensities.

    Raises MandorlaError if it has other modalities than the model, or other classes of one label.
    """
    recipe = read_recipe(source)
    other = load_data(recipe.data, recipe.seed)
    if set(other.modalities) != set(model.modalities):
        text = [", ".join(f"{m.name} {m.shape}" for m in each.modalities) for each in (other, model)]
        raise MandorlaError(f"--data {source}: has the modalities {text[0]}; this model needs {text[1]}")
    own = model.data()
    for label in own.classes.keys() & other.classes.keys():
        if own.classes[label] != other.classes[label]:
            raise MandorlaError(
                f"--data {source}: the label {label!r} has the classes {', '.join(other.classes[label])}, in the run"
                f" {', '.join(own.classes[label])}: give them the same names, all of them in both"
            )
    numbers = {label for label, values in _labels(own).items() if values.dtype.kind == "f"} - own.classes.keys()
    for label in numbers & other.classes.keys():
        if not all(name.isdecimal() for name in other.classes[label]):  # whole numbers are classes, and numbers too
            raise MandorlaError(
                f"--data {source}: the label {label!r} has the classes {', '.join(other.classes[label])}, in the run it"
                " is numbers: give both one kind"
            )
    intensity, test = dict(model.intensity), other.test
    if isinstance(test, StoredDataset):
        for name, fitted in model.intensity.items():
            if fitted.subjects:  # else no image need be read for it
                there = test.present[name][test.rows]
                intensity[name] = fitted.of_others(test.x[name][test.rows], there, test.groups)
    test = with_intensity(other, intensity).test
    return Splits(own.train, own.val, test, own.intensity, own.classes, own.contents)


def _labels(data: Splits) -> Mapping[str, np.ndarray]:
    return data.test.labels if isinstance(data.test, StoredDataset) else data.test.batch([0]).factors


class _Clock:
    """Tell the progress, and keep the seconds that each step took."""

    def __init__(self, progress: Progress, suites: Sequence[Suite]) -> None:
        self.progress, self.seconds = progress, {}
        self._what, self._since, self._behind = "", 0.0, 0
        chosen = set(suites)
        self._work = {name: work for name, (work, needed_by) in _PREPARED.items() if chosen & needed_by}
        self._work |= {name: work for name, (work, _) in _FIGURES.items() if name in chosen}
        self._work |= {"data": 2, "pictures": 3}

    def start(self, what: str) -> None:
        now = time.perf_counter()
        if self._what:
            self.seconds[self._what] = round(self.seconds.get(self._what, 0) + now - self._since, 2)
            self._behind += self._work[self._what]
        self._what, self._since = what, now
        self.progress(what, self._behind / sum(self._work.values()))
