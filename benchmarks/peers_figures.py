"""The figures of what models answered in the benchmark against peers, by the functions of `mandorla.evaluate`.

Where samples have a class that all modalities share: what codes know of it, whether views decoded from one code, after
a swap, or out of nothing, belong together. Where they have none: how near translations are to the truth. Of both, how
far generated tuples are from real ones. `peers/task.py` says what an answer is.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.data import load_data
from mandorla.data.augment import AugmentConfig, augment_of
from mandorla.data.dataset import Batch, Dataset, Splits, evenly
from mandorla.device import choose_device
from mandorla.errors import MandorlaError
from mandorla.evaluate.coherence import agreement, chance_agreement, donors, histogram_distance, judge_all
from mandorla.evaluate.distances import density_coverage, frechet_distance, kernel_distance, precision_recall
from mandorla.evaluate.features import Networks, feature_spaces
from mandorla.evaluate.figures.classes import class_figures
from mandorla.evaluate.figures.fidelity import LEAST
from mandorla.evaluate.figures.subject import Codes, over_views
from mandorla.evaluate.figures.translation import LIKENESS, by_group
from mandorla.evaluate.gather import Gathered, choose, whose
from mandorla.evaluate.images import foreground
from mandorla.evaluate.judges import Judge, find_judges
from mandorla.evaluate.record import Record, averaged, jackknife_error
from mandorla.latents import Latents
from mandorla.pictures import grid
from mandorla.recipe import Recipe
from mandorla.storage import write_bytes, write_text

_SHOWN = 12  # generated tuples in a picture

_DISTANCES = {"frechet": (frechet_distance, "Fréchet distance"), "kernel": (kernel_distance, "Kernel distance (KID)")}

Images = dict[str, Tensor]  # (B, C, *size) in [0, 1] by name of modality
Patients = tuple[np.ndarray, np.ndarray]  # whose real and made images are
Sets = tuple[Images, Images, Images, Patients]  # features: real, made, usual
Columns = dict[str, list[Record]]  # of each way in which a model answers


class Truth:
    """Hold data and judges of one recipe, against which answers are measured; `folder` keeps the judges.

    Raises MandorlaError for data that peers cannot be trained on.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.settings, self.seed, self.device = recipe.evaluate, recipe.seed, choose_device(recipe.device)
        self.splits: Splits = load_data(recipe.data, recipe.seed)
        self.names = [modality.name for modality in self.splits.modalities]
        shapes = {modality.name: modality.shape for modality in self.splits.modalities}
        model = recipe.vae.model
        self.networks = {name: model.encoder_decoder_of.get(name, model.encoder_decoder) for name in self.names}
        images = [name for name, shape in shapes.items() if len(shape) == 3]
        for name, network in self.networks.items():
            if network.kind != "perceptron" and not (network.kind == "convolutional" and name in images):
                raise MandorlaError(
                    f"peers are networks of images, or perceptrons, and {name} has shape {shapes[name]} and a network"
                    f" of kind '{network.kind}': leave it out, or set vae.model.encoder_decoder_of"
                )
        augment = augment_of(recipe.data)
        self.flip = augment.flip
        if augment != AugmentConfig(flip=augment.flip):
            raise MandorlaError("peers see no augmented images but mirrored ones: leave data.augment out, but for flip")
        self.one_size = len({shape[1:] for shape in shapes.values()}) == 1 and bool(images)
        if not self.classes and not (self.one_size and {shape[0] for shape in shapes.values()} == {1}):
            raise MandorlaError(f"peers for translation stack grey images of one size, not {shapes}: set data.size")

    @property
    def classes(self) -> bool:
        """Return whether samples have a class, so that codes and coherence are in question, not translation."""
        return self.settings.label in self.splits.test.batch([0]).factors

    @property
    def routes(self) -> list[tuple[list[str], list[str]]]:
        """Return the translations, of any modalities to all others, `(given, wanted)`; none where there are classes."""
        sizes = () if self.classes else range(1, len(self.names))
        chosen = [list(given) for size in sizes for given in combinations(self.names, size)]
        return [(given, [name for name in self.names if name not in given]) for given in chosen]

    @cached_property
    def parts(self) -> dict[str, tuple[Dataset, np.ndarray]]:
        """Return the parts of what models are shown: a data set and the samples of it."""
        settings, seed, train, test = self.settings, self.seed, self.splits.train, self.splits.test
        return {
            "train": (train, np.arange(len(train))),
            "known": (train, choose(train, settings.num_train, seed)),
            "test": (test, choose(test, settings.num_test, seed)),
            "translated": (test, choose(test, settings.num_translated, seed)),
        }

    def part(self, name: str) -> Batch:
        """Return all samples of a part."""
        dataset, rows = self.parts[name]
        return dataset.batch(rows)

    @cached_property
    def known(self) -> Batch:
        """Return the training samples that probes are fitted on."""
        return self.part("known")

    @cached_property
    def test(self) -> Batch:
        """Return the test samples."""
        return self.part("test")

    @cached_property
    def translated(self) -> Batch:
        """Return the test samples that are translated."""
        return self.part("translated")

    @cached_property
    def donor(self) -> np.ndarray:
        """Return which test sample gives each its private part in a swap."""
        return donors(whose(*self.parts["test"]), self.seed)

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Return the classifiers of classes, private factors and lesions, none of data without any."""
        return find_judges(self.folder / "judges.safetensors", self.splits, self.settings, self.seed, self.device)

    @cached_property
    def spaces(self) -> dict[str, Networks]:
        """Return the networks of each space of features."""
        return feature_spaces(self.splits.modalities, self.judges, self.settings.features)[0]

    def measure(self, name: str, answer: Path) -> Columns:
        """Return the figures of a model by the way in which it answers, its name alone where there is but one."""
        columns = self._measure_routes(name, answer) if self.routes else {name: self._measure_codes(answer)}
        made = read_images(answer / "joint")
        if made:
            write_bytes(answer / "joint.png", grid([x[:_SHOWN] for x in made.values()], list(made)))
        figures = {column: [record.to_json() for record in records] for column, records in columns.items()}
        write_text(answer / "figures.json", json.dumps(figures, indent=1))
        return columns

    def _measure_codes(self, answer: Path) -> list[Record]:
        """Measure what codes know, and whether what is decoded from them belongs together."""
        settings, label, judges = self.settings, self.settings.label, self.judges
        verdicts = {n: {f: j.probabilities(self.test.x[n], f) for f in j.heads} for n, j in judges.items()}
        known, test = gathered(answer / "known", self.known, {}), gathered(answer / "test", self.test, verdicts)
        few = settings.model_copy(update={"num_residual": 0})  # what would need the model itself
        codes = Codes(None, few, self.seed, judges, known, test)
        truth = test.factors[label]
        reference = codes.reference
        figures = class_figures(codes) if test.alone else []
        records = [r for r in figures if r.name.count("/") == 1 and r.group != "ceiling"]
        own, others = [], []
        for source in self.names:
            for name, image in read_images(answer / "given" / source).items():
                (own if name == source else others).append(judges[name].classes(image[0], label) == truth)
        text = "Share in which a view, generated given {} alone, shows the class of that, what is private drawn."
        for kind, right, source in (("self", own, "itself"), ("cross", others, "another")):
            if right:
                records.append(codes.record(f"coherence/{kind}", np.mean(right, 0), text.format(source), **reference))
        if swapped := read_images(answer / "swapped"):
            kept = np.mean(judge_all(judges, swapped, label) == truth, 0)
            text = "Share in which a view, decoded with the private part of another sample, {}."
            records.append(codes.record("swap/class", kept, text.format("keeps its class"), **reference))
            if factors := codes.private_factors:
                moved = [judges[n].classes(swapped[n], f) == test.factors[f][self.donor] for n, f in factors.items()]
                kind, text = settings.private_label, text.format(f"takes over its '{settings.private_label}'")
                records.append(codes.record(f"swap/{kind}", np.mean(moved, 0), text, **codes.private_reference))
        return records + self._joint_records(answer, codes)

    def _joint_records(self, answer: Path, codes: Codes) -> list[Record]:
        """Measure generated tuples: do views agree, are all classes there, do they look real."""
        label, judges, records = self.settings.label, self.judges, []
        rng = np.random.default_rng(self.seed)
        seen = np.stack([codes.test.verdicts[name][label].argmax(1) for name in judges])
        reference = {"chance": chance_agreement(codes.test.factors[label], len(judges))}
        reference["ceiling"] = float(agreement(seen).mean())
        for place in ("joint", "joint mixture"):
            if made := read_images(answer / place):
                classes = judge_all(judges, made, label)
                mixed = np.stack([rng.permutation(of_view) for of_view in classes])
                name = place.replace("joint", "joint/agreement")
                text = "Share of {} in which all judges name one class."
                records.append(codes.record(name, agreement(classes), text.format("generated tuples"), **reference))
                text = text.format("tuples of views of different generated tuples")
                chance = reference["chance"]
                records.append(codes.record(f"{name}, mixed", agreement(mixed), text, "neither", chance=chance))
        made = read_images(answer / "joint")
        factors = {"class": dict.fromkeys(judges, label)}
        if private := codes.private_factors:
            factors[self.settings.private_label] = private
        for kind, of_view in factors.items():
            distances = []
            for name, factor in of_view.items():
                num = judges[name].heads[factor].out_features
                real = codes.test.verdicts[name][factor].argmax(1)
                distances.append(histogram_distance(judges[name].classes(made[name], factor), real, num))
            text = f"Total variation between the {kind} shares of generated and real images, mean over views."
            records.append(codes.record(f"joint/{kind} histogram", np.array(distances), text, "lower"))
        return records + self._fidelity(made)

    def _fidelity(self, made: Images) -> list[Record]:
        """Measure how far generated tuples are from test samples, how many look real, how varied they are."""
        sets = {space: self._features(space, "test", made) for space in self.spaces}
        return self.distances("joint", list(made), sets) + self._variety(sets)

    def distances(self, start: str, made: list[str], sets: Mapping[str, Sets], paired: bool = False) -> list[Record]:
        """Measure the distances of the modalities `made` to real ones in each space; `sets` are `_features`.

        The mean over what was made, each by its Fréchet distance, and all modalities side by side: what was not made is
        the real one. Beside it stands that of training images, but where made and real ones are `paired`, guesses of
        the truth. Errors leave out whole patients, of pairs on both sides.
        """
        records = []
        for space, (truth, answered, usual, patients) in sets.items():
            scopes = {f"/{name}": [name] for name in made} | {" all together": self.names}
            for measure, (distance, title) in _DISTANCES.items():
                text = f"{title} in the features '{space}'" + "; ceiling: training images." * (not paired)
                found = {}
                for scope, names in scopes.items():
                    a, b, c = (torch.cat([of[name] for name in names], 1) for of in (truth, answered, usual))
                    error = self._error_of_distance(distance, a, b, patients, paired)
                    found[scope] = Record(
                        f"{start}/{space} {measure}{scope}",
                        distance(a, b),
                        error,
                        len(a),
                        text,
                        "lower",
                        ceiling=None if paired else distance(a, c),
                        seed=self.seed,
                    )
                each_one = [record for scope, record in found.items() if scope.startswith("/")]
                shown = found.values() if measure == "frechet" else [found[" all together"]]
                records += [averaged(f"{start}/{space} {measure}", each_one, text), *shown]
        return records

    def _error_of_distance(
        self, distance: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, patients: Patients, paired: bool
    ) -> float | None:
        def between(*of: Tensor) -> np.ndarray:
            return np.array([distance(*(of[0].chunk(2, 1) if len(of) == 1 else of))])

        of, groups = ((torch.cat([a, b], 1),), patients[:1]) if paired else ((a, b), patients)
        errors = jackknife_error(between, of, groups, 2, self.seed)
        return None if errors is None else float(errors[0])

    def _variety(self, sets: Mapping[str, Sets]) -> list[Record]:
        """Measure precision, recall and coverage of generated tuples, all modalities side by side."""
        records = []
        for space, (*features, patients) in sets.items():
            truth, answered, usual = (torch.cat([of[name] for name in self.names], 1) for of in features)
            if len(truth) < LEAST:
                continue
            (near, found), (near_usual, found_usual) = (precision_recall(truth, z) for z in (answered, usual))
            covered, covered_usual = (density_coverage(truth, z)[1] for z in (answered, usual))
            scores = {
                "precision": (near, near_usual, "generated tuples near a real one", "nearer ceiling", patients[1]),
                "recall": (found, found_usual, "real tuples near a generated one", "higher", patients[0]),
                "coverage": (covered, covered_usual, "real tuples with a generated one near", "higher", patients[0]),
            }
            for name, (score, best, what, better, groups) in scores.items():
                text = f"Share of {what} in the features '{space}'; ceiling: training images."
                kept = {"ceiling": float(best.mean()), "groups": groups, "seed": self.seed}
                records.append(Record.of(f"joint/{space} {name} all together", score, text, better, **kept))
        return records

    def _features(self, space: str, part: str, made: Images) -> Sets:
        """Return features of a real `part`, of made images (of real ones where none were made) and of training images.

        As many of each; and whose the first two are.
        """
        real: Batch = getattr(self, part)
        counts = (len(real.ids), len(next(iter(made.values()))), len(self.known.ids))
        truth, answered, usual = (evenly(count, min(counts)) for count in counts)
        patients = whose(*self.parts[part])[truth]
        networks = self.spaces[space]
        sets = [
            {name: networks[name].features(images[name][rows]) for name in self.names}
            for images, rows in ((real.x, truth), (real.x | made, answered), (self.known.x, usual))
        ]
        return *sets, (patients, np.arange(min(counts)))

    def _measure_routes(self, name: str, answer: Path) -> Columns:
        """Measure translations: of several draws their mean and a single one; and generated tuples."""
        drawn, mean_code = (
            {tuple(given): read_images(answer / place / "+".join(given)) for given, _ in self.routes}
            for place in ("given", "mean")
        )
        draws = len(next(iter(drawn[self.names[0],].values())))
        single = f"{name}, single" if draws > 1 else name
        ways = {f"{name}, mean of {draws}": each(drawn, lambda x: x.mean(0))} if draws > 1 else {}
        ways[single] = each(drawn, lambda x: x[0])
        if any(mean_code.values()):
            ways[f"{name}, u = 0"] = each(mean_code, lambda x: x[0])
        columns = {way: self.likeness(guess) for way, guess in ways.items()}
        if made := read_images(answer / "joint"):
            columns[single] += self._fidelity(made)
        return columns

    def measure_simple(self) -> Columns:
        """Measure what needs no training: the mean of what is given, and the mean training image."""
        if not self.routes:
            return {}
        x = self.translated.x
        means = {name: self._mean_image(name) for name in x}
        copied = {tuple(g): {name: torch.stack([x[n] for n in g]).mean(0) for name in w} for g, w in self.routes}
        constant = {tuple(g): {name: means[name].float().expand_as(x[name]) for name in w} for g, w in self.routes}
        return {"copy of what is given": self.likeness(copied), "mean image": self.likeness(constant)}

    def _mean_image(self, name: str) -> Tensor:
        """Return the mean training image `(C, *size)` in [0, 1]."""
        stored = np.load(self.folder / "data" / "train" / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(stored.mean(0, dtype=np.float64)) / (255 if stored.dtype == np.uint8 else 1)

    def likeness(self, guess: Mapping[tuple[str, ...], Images]) -> list[Record]:
        """Measure `guess[given][wanted]` `(N, C, *size)` against the truth: per patient, over all routes, and each."""
        truth = self.translated.x
        groups = whose(*self.parts["translated"])
        scores: dict[str, dict[str, np.ndarray]] = {}
        for given, images in guess.items():
            for wanted, image in images.items():
                mask = foreground(truth[wanted])
                bright = mask.flatten(1).any(1)
                for measure, (function, _, _) in LIKENESS.items():
                    whole = by_group(function(image, truth[wanted]), groups)
                    inside = function(image[bright], truth[wanted][bright], mask[bright])
                    route = f"{' and '.join(given)} to {wanted}"
                    scores.setdefault(measure, {})[route] = whole
                    scores.setdefault(f"{measure} foreground", {})[route] = by_group(inside, groups[bright.numpy()])
        records = []
        for kind, of_route in scores.items():
            _, unit, better = LIKENESS[kind.split()[0]]
            named = {f"translation/{kind}": over_views(of_route)}
            named |= {f"translation/{route}/{kind}": of for route, of in of_route.items()} if kind == "psnr" else {}
            for name, values in named.items():
                text = f"{kind} against the truth, mean over patients" + ", over all routes" * (name.count("/") == 1)
                records.append(Record.of(name, values, text, better, unit=unit, seed=self.seed))
        found: dict[str, list[Record]] = {}
        for images in guess.values():
            sets = {space: self._features(space, "translated", images) for space in self.spaces}
            for record in self.distances("translation", list(images), sets, paired=True):
                found.setdefault(record.name, []).append(record)
        return records + [averaged(name, of_routes, of_routes[0].definition) for name, of_routes in found.items()]


def each(drawn: Mapping[tuple[str, ...], Images], change: Callable[[Tensor], Tensor]) -> dict[tuple[str, ...], Images]:
    """Return what `change` makes of all images."""
    return {given: {name: change(x) for name, x in images.items()} for given, images in drawn.items()}


def read_images(folder: Path) -> Images:
    """Return the arrays in a folder of answers by name, none if there is no such folder."""
    return {path.stem: torch.from_numpy(np.load(path)) for path in sorted(folder.glob("*.npy"))}


def gathered(folder: Path, batch: Batch, verdicts: dict[str, dict[str, np.ndarray]]) -> Gathered:
    """Return the codes that a model answered for the samples of `batch`, if it has any, with their labels."""
    alone, private = read_images(folder / "shared"), read_images(folder / "private")
    together = torch.cat([code.flatten(1) for code in alone.values()], 1) if alone else None
    return Gathered(
        indices=np.arange(len(batch.ids)),
        latents=Latents(together, private),
        alone=alone,
        present={name: here.numpy() for name, here in batch.present.items()},
        factors={key: values for key, values in batch.factors.items() if values.ndim == 1},
        verdicts=verdicts,
        means={},
    )
