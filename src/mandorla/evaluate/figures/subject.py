"""What is measured: a model, its data, and what both gave, computed when a figure first asks for it and once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Batch, Splits
from mandorla.evaluate.audit import Audit, audit
from mandorla.evaluate.features import Networks, feature_spaces
from mandorla.evaluate.gather import Gathered, choose, gather
from mandorla.evaluate.judges import Judge, find_gauges, find_judges
from mandorla.evaluate.probes import Kind, chance_share, features, hits, probe
from mandorla.evaluate.record import Record
from mandorla.evaluate.settings import EvaluateConfig, Suite
from mandorla.model import Mandorla, Samples
from mandorla.parallel import in_turn

Images = dict[str, Tensor]
Route = tuple[str, str]  # given, wanted
_FIT = 20  # training samples that a straight line through numbers takes, at least
JUDGED: set[Suite] = {"disentanglement", "coherence", "fidelity"}  # what classifiers are needed for


@dataclass(frozen=True)
class Codes:
    """Hold what is measured of codes: the model, its judges, the gathered training and test samples."""

    model: Mandorla
    settings: EvaluateConfig
    seed: int
    judges: Mapping[str, Judge]
    train: Gathered
    test: Gathered

    @property
    def names(self) -> list[str]:
        """Return the names of the modalities."""
        return [modality.name for modality in self.model.modalities]

    @property
    def views(self) -> list[str]:
        """Return the modalities whose class is judged: all of them or, where the data has no class, none."""
        return [name for name in self.judges if self._is_judged(self.settings.label, name)]

    def _is_judged(self, factor: str, view: str) -> bool:
        """Return whether a judge knows a factor of a view that samples of both parts have."""
        judged = factor in self.judges[view].heads
        return judged and all(part.known(factor, view).any() for part in (self.train, self.test))

    @property
    def complete(self) -> np.ndarray:
        """Return the places of the test samples that lack no modality, `(n,)`."""
        return np.flatnonzero(np.all(list(self.test.present.values()), axis=0))

    def labelled(self, *factors: str) -> np.ndarray:
        """Return the places of the test samples that lack no modality and no class of these factors, `(n,)`."""
        return self.complete[np.all([self.test.known(factor)[self.complete] for factor in factors], axis=0)]

    def whose(self, view: str | None = None, factor: str | None = None) -> np.ndarray:
        """Return whose (which patient's) each test sample, or each that has `view` and `factor`, is.

        Each is its own where that is not known.
        """
        if view is None:
            return self.test.whose
        return self.test.whose[self.test.present[view] if factor is None else self.test.known(factor, view)]

    def joined(
        self, scores: Mapping[str, np.ndarray], factors: Mapping[str, str] | str | None = None
    ) -> dict[str, np.ndarray]:
        """Return `scores` of the test samples by view, one after the other, and whose they are, for `record`.

        They are of the samples that have the view and, where they tell of one, the factor, one for all views or each.
        """
        of = dict.fromkeys(scores, factors) if factors is None or isinstance(factors, str) else factors
        return {
            "scores": np.concatenate(list(scores.values())),
            "groups": np.concatenate([self.whose(view, of[view]) for view in scores]),
        }

    @property
    def record(self) -> Callable[..., Record]:
        """Return `Record.of`, with the seed of this evaluation."""
        return partial(Record.of, seed=self.seed)

    def probed(
        self, kind: Kind, code: Tensor, factor: str, view: str, test: Tensor, whiten: bool = False
    ) -> np.ndarray:
        """Return the class probabilities of a probe of `factor`, on the test samples that have it and `view`,
        `(B, classes)`.

        `code` are the training samples' codes, `test` the test samples'; `whiten` is that of `probe`.
        """
        rows, test_rows = self.train.known(factor, view), self.test.known(factor, view)
        labels = self.train.factors[factor][rows]
        return probe(kind, features(code)[rows], labels, features(test)[test_rows], self.seed, whiten)

    def truth(self, factor: str, view: str) -> np.ndarray:
        """Return the true `factor` of the test samples that have it and `view`."""
        return self.test.factors[factor][self.test.known(factor, view)]

    def read_off(
        self, kind: Kind, code: Tensor, factor: str, view: str, test: Tensor, whiten: bool = False
    ) -> np.ndarray:
        """Return where a probe is right about `factor`; arguments as of `probed`."""
        guess = self.probed(kind, code, factor, view, test, whiten)
        return hits(guess, self.truth(factor, view), self.train.factors[factor][self.train.known(factor, view)])

    def chance(self, factor: str) -> float:
        """Return the accuracy of the best constant answer."""
        return chance_share(*(part.factors[factor][part.known(factor)] for part in (self.train, self.test)))

    def judged(self, factor: str, view: str) -> np.ndarray:
        """Return where the judge of `view` is right about `factor` on real test images: the ceiling."""
        rows = self.test.known(factor, view)
        return self.test.verdicts[view][factor][rows].argmax(1) == self.test.factors[factor][rows]

    @property
    def reference(self) -> dict[str, float]:
        """Return chance and ceiling of naming the class, mean over views."""
        label = self.settings.label
        judged = over_views({view: self.judged(label, view) for view in self.views})
        return {"chance": self.chance(label), "ceiling": float(np.mean(judged))}

    @property
    def private_factors(self) -> dict[str, str]:
        """Return the private factor of each view whose judge knows it."""
        factors = {view: f"{self.settings.private_label}_{view}" for view in self.views}
        return {view: factor for view, factor in factors.items() if self._is_judged(factor, view)}

    @cached_property
    def quantities(self) -> dict[str, dict[str, str]]:
        """Return the factors that are numbers, by name, and by view as the data have it: `tr` -> {t1: tr_t1}.

        Those that too few samples have are left out. `tr_t1` keeps its name where the whole sample has a `tr` too.
        """
        found: dict[str, dict[str, str]] = {}
        taken = {factor for said in self.test.measured.values() for factor in said}
        for view, said in self.test.measured.items():
            for factor in said:
                train, test = (part.known(factor, view).sum() for part in (self.train, self.test))
                if train >= _FIT and test > 1:
                    name = factor.removesuffix(f"_{view}")
                    found.setdefault(factor if name in taken else name, {})[view] = factor
        return found

    @property
    def private_reference(self) -> dict[str, float]:
        """Return chance and ceiling of naming the private factors, means over views."""
        factors = self.private_factors
        return {
            "chance": float(np.mean([self.chance(factor) for factor in factors.values()])),
            "ceiling": float(np.mean([self.judged(factor, view).mean() for view, factor in factors.items()])),
        }


@dataclass(frozen=True)
class Subject:
    """Hold a model, the data it is measured on, and the run whose translations are to be beaten, if there is one.

    The rest is computed when it is first asked for.
    """

    model: Mandorla
    data: Splits
    settings: EvaluateConfig
    baseline: Mandorla | None = None

    @property
    def seed(self) -> int:
        """Return the seed of all that is random."""
        return self.model.recipe.seed

    @property
    def names(self) -> list[str]:
        """Return the names of the modalities."""
        return [modality.name for modality in self.model.modalities]

    @property
    def routes(self) -> list[Route]:
        """Return the translations to measure: those asked for or all ordered pairs."""
        return list(self.settings.routes or permutations(self.names, 2))

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Return the classifiers of the data's labels, none where no figure needs them."""
        if not JUDGED & set(self.settings.suites):
            return {}
        return self._find(find_judges, "judges")

    @cached_property
    def gauges(self) -> dict[str, Judge]:
        """Return the networks that tell the data's numbers, none where no figure needs them."""
        return self._find(find_gauges, "gauges") if "disentanglement" in self.settings.suites else {}

    def _find(self, find: Callable[..., dict[str, Judge]], name: str) -> dict[str, Judge]:
        path = Path(self.model.run) / "evaluate" / f"{name}.safetensors"
        with in_turn():  # what the first trains the others find
            judges = find(path, self.data, self.settings, self.seed, self.model.device)
        labels = self.data.test.batch([0]).factors
        for judge in judges.values():
            for factor in set(judge.heads) - labels.keys():  # other data than the run's own may lack it
                del judge.heads[factor]
            for factor, meter in list(judge.meters.items()):
                if factor not in labels or labels[factor].size != meter.out_features:
                    del judge.meters[factor]
        return judges

    @cached_property
    def spaces(self) -> tuple[dict[str, Networks], list[str]]:
        """Return the networks of each space of features, and notes on those that were left out."""
        return feature_spaces(self.model.modalities, self.judges, self.settings.features)

    @cached_property
    def codes(self) -> Codes:
        """Return codes, labels and verdicts of training and test samples."""
        settings, data, model = self.settings, self.data, self.model
        train = gather(model, data.train, choose(data.train, settings.num_train, self.seed), {})
        test = gather(model, data.test, choose(data.test, settings.num_test, self.seed), self.judges, self.gauges)
        return Codes(model, settings, self.seed, self.judges, train, test)

    @cached_property
    def samples(self) -> Samples:
        """Return jointly generated tuples."""
        return self.model.sample(self.settings.num_generated, seed=self.seed)

    @cached_property
    def translated(self) -> Batch:
        """Return the test samples that are translated and reconstructed."""
        return self.data.test.batch(choose(self.data.test, self.settings.num_translated, self.seed))

    @cached_property
    def translations(self) -> dict[str, Images]:
        """Return `translations[given][wanted]`, `(K, B, C, *size)`, of `translated`."""
        return self._translate(self.model)

    @cached_property
    def baseline_translations(self) -> dict[str, Images]:
        """Return the same of the baseline, empty without one."""
        return self._translate(self.baseline) if self.baseline else {}

    @cached_property
    def reconstructions(self) -> Images:
        """Return `translated`, encoded and decoded."""
        return self.model.decode(self.model.encode(self.translated.x, self.translated.present), refined=False)

    @cached_property
    def audit(self) -> Audit | None:
        """Return how close the samples lie to training and to unseen samples; None if no sample has all modalities."""
        settings = self.settings
        rows = choose(self.data.train, settings.num_searched or len(self.data.train), self.seed)
        held_out = choose(self.data.test, settings.num_test, self.seed)
        return audit(self.samples.x, self.data.train, rows, self.data.test, held_out, self.seed)

    def _translate(self, model: Mandorla) -> dict[str, Images]:
        wanted: dict[str, list[str]] = {}
        for given, name in self.routes:
            wanted.setdefault(given, []).append(name)
        x, num = self.translated.x, self.settings.num_samples
        return {
            given: model.translate({given: x[given]}, names, num_samples=num, seed=self.seed)
            for given, names in wanted.items()
        }

    def complete(self, num: int) -> Images:
        """Return the images of the first `num` translated test samples that lack nothing."""
        rows = torch.nonzero(torch.stack(list(self.translated.present.values())).all(0))[:num, 0]
        return {name: x[rows] for name, x in self.translated.x.items()}


def over_views(record_of: dict[str, np.ndarray]) -> np.ndarray:
    """Return the scores averaged over views, per sample where all views have all samples."""
    scores = list(record_of.values())
    if len({len(score) for score in scores}) == 1:
        return np.mean(scores, axis=0)
    return np.concatenate(scores)


def with_all(record_of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what all views have, one after the other, as "", then that of each as "/<view>", as records' names end."""
    return {"": np.concatenate(list(record_of.values()))} | {f"/{view}": each for view, each in record_of.items()}
