"""The evaluation of a run: measure, draw, write `metrics.json`, `pictures/` and `report.html` into the run folder."""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mandorla.config import dump
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.figures import (
    Images,
    Subject,
    class_figures,
    coherence_figures,
    copy_figures,
    lesion_figures,
    routes,
    translation_figures,
)
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.judges import Judge, find_judges
from mandorla.evaluate.pictures import draw_all
from mandorla.evaluate.record import Record
from mandorla.evaluate.report import print_summary, render
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.storage import whole

if TYPE_CHECKING:
    from mandorla.model import Mandorla

Progress = Callable[[str, float], None]  # what is done next, and the share of all work that is behind

PROTOCOL = (
    "All figures are of test samples that took no part in training. Codes are posterior means. Probes are fitted on"
    " {train} training samples, features standardised, and scored on {test} test samples.",
    "The judges are small convolutional networks, one per modality, trained on {judged} labelled images of the training"
    " part and used both as ceiling and to judge what is generated. A ceiling below 1 is theirs: a better judge would"
    " raise both sides.",
    "Generated are {generated} tuples jointly and {samples} translations of each of {translated} test samples. PSNR,"
    " SSIM and MAE are of images clipped to [0, 1], computed per sample (per patient where samples have one) and then"
    " averaged. The mean of samples is the better guess and the blurrier image; a single sample is what a user sees.",
    "The copy audit compares images averaged down to at most 32 pixels a side with the training samples that the probes"
    " use; blurred samples lie close to everything, so read its distance beside its ratio.",
)


def evaluate(run: Path | str) -> list[Record]:
    """Evaluate the run folder `run` with a progress bar, print the figures that matter most, and return all."""
    from rich.progress import Progress as Bar

    import mandorla

    model = mandorla.load(run)
    model.sample(1)  # stage 2 is there: better known before minutes of training classifiers
    with Bar(transient=True) as bar:
        task = bar.add_task("evaluate", total=1)
        metrics = evaluate_run(
            model, model.recipe.evaluate, lambda what, share: bar.update(task, description=what, completed=share)
        )
    records = [Record(**record) for record in metrics["records"]]
    print_summary(records)
    return records


def evaluate_run(model: "Mandorla", settings: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measure `model` on its test split and write `metrics.json`, `pictures/*.png`, `report.html` into its run folder.

    Returns what `metrics.json` holds: `records`, `settings`, `seed` and `seconds` by step. Raises `MandorlaError` where
    the settings name a modality that the model lacks.
    """
    clock = _Clock(progress or (lambda what, share: None))
    seed, run = model.recipe.seed, model.run
    names = [modality.name for modality in model.modalities]
    for route in settings.routes:
        for name in route:
            if name not in names:
                raise MandorlaError(f"evaluate.routes: unknown modality {name!r}; this model has {', '.join(names)}")
    clock.start("classifiers", 0.0)
    data = model.data()
    judges = find_judges(run / "evaluate" / "judges.safetensors", data, settings, seed, model.recipe.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: test samples are what they are
        clock.start("codes", 0.45)
        train = gather(model, data.train, choose(data.train, settings.num_train, seed), {})
        test = gather(model, data.test, choose(data.test, settings.num_test, seed), judges)
        clock.start("samples", 0.55)
        samples = model.sample(settings.num_generated, seed=seed)
        translated = data.test.batch(choose(data.test, settings.num_translated, seed))
        translations: dict[str, Images] = {}
        for given, wanted in routes(settings, names):
            translations.setdefault(given, {})[wanted] = torch.empty(0)
        for given, of_wanted in translations.items():
            translations[given] = model.translate(
                {given: translated.x[given]}, list(of_wanted), num_samples=settings.num_samples, seed=seed
            )
        reconstructions = model.decode(model.encode(translated.x, translated.present))
    subject = Subject(model, settings, seed, judges, train, test, samples, translated, translations, reconstructions)
    records: list[Record] = []
    for what, share, figures in (
        ("probes", 0.7, class_figures),
        ("coherence", 0.8, coherence_figures),
        ("likeness", 0.9, translation_figures),
        ("lesions", 0.93, lesion_figures),
    ):
        clock.start(what, share)
        records += figures(subject)
    copies, neighbours = copy_figures(subject)
    records += copies
    clock.start("pictures", 0.95)
    pictures = draw_all(subject, neighbours, data.train)
    clock.start("done", 1.0)
    numbers = {"train": len(train.indices), "test": len(test.indices), "generated": settings.num_generated}
    numbers |= {"samples": settings.num_samples, "translated": len(translated.ids)}
    numbers |= {"judged": settings.judge_steps * settings.judge_batch_size}
    metrics = {
        "records": [record.to_json() for record in records],
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "seconds": clock.seconds,
    }
    facts = {"seed": seed, "data": model.recipe.data.kind, "modalities": ", ".join(names)}
    facts |= {"test samples": len(test.indices), "evaluated in": f"{sum(clock.seconds.values()):.0f} s"}
    notes = [text.format(**numbers) for text in PROTOCOL] + _left_out(settings, judges) + _borrowed(model)
    page = render(Path(model.run).resolve().name, records, pictures, notes, facts, dump(model.recipe))
    for picture in pictures:
        _write(run / "pictures" / f"{picture.name}.png", picture.png)
    _write(run / "report.html", page.encode())
    _write(run / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    return metrics


def _left_out(settings: EvaluateConfig, judges: dict[str, Judge]) -> list[str]:
    judged = {factor for judge in judges.values() for factor in judge.heads}
    left_out = {
        settings.label: "what a class label is needed for (ceiling, probes, coherence)",
        settings.lesion: "the lesion test",
    }
    return [
        f"Left out: {what}; this data has no classes '{factor}' of every sample."
        for factor, what in left_out.items()
        if factor not in judged
    ]


def _borrowed(model: "Mandorla") -> list[str]:
    """Say so where stage 2 does not generate the shared part."""
    mode = model.recipe.diffusion.mode
    text = f"Stage 2 was trained in mode {mode}: jointly generated tuples have the shared part of a training sample."
    return [] if mode == "joint" else [text]


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_bytes(content)


class _Clock:
    """Tell the progress, and keep the seconds that each step took."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.seconds = progress, {}
        self._what, self._since = "", 0.0

    def start(self, what: str, share: float) -> None:
        now = time.perf_counter()
        if self._what:
            self.seconds[self._what] = round(now - self._since, 2)
        self._what, self._since = what, now
        self.progress(what, share)
