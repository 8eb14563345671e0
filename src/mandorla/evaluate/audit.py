"""Copy audit: are generated samples closer to training samples than unseen real samples are?

d(x) is the distance from x to its nearest training sample. Calibrated questions, asked of *pixels* and of the space of
features *random*, which looks at texture and does not care where exactly it lies:
- *distance*: is d(x) at most the first percentile of held-out real samples? A generator that copies nothing scores .01,
  more by chance where few samples are held out: `chance_of_as_many` says how probable that is; smooth samples are close
  to everything, so this one also reacts to blur;
- *ratio*: is d(x) that small beside the distance to the next neighbours? Only a copy has one neighbour that close;
- *nearer*: is x nearer to the training set than to as many held-out samples? By chance in half of the cases.

Where it is known whose (which patient's) a sample is, held-out samples of one patient are not counted as independent:
see `effective_number`; and *nearer* compares whole patients with whole patients, as slices of many patients are nearer
to everything than as many of a few.

References: Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models", 2020,
https://arxiv.org/abs/2004.05675; Dar et al., "Investigating Data Memorization in 3D Latent Diffusion Models", 2024,
https://arxiv.org/abs/2402.01054
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset, Modality, pieces
from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, code_rows
from mandorla.evaluate.features import random_network
from mandorla.evaluate.gather import whose
from mandorla.evaluate.information import shuffled
from mandorla.nets.blocks import resize

LARGEST = 32  # images are averaged down to at most this many pixels a side
NEXT = 10  # neighbours after the first that set the scale of the ratio
_CHUNK = 500  # samples that are read at once
_ROUNDING = 1e-3  # of a vector's root mean square: as far may equal ones seem apart
LEVEL = 0.025  # of chance, in each of two spaces: of audits in which nothing was copied, one in twenty fails at most


@dataclass(frozen=True)
class Neighbours:
    """Hold the `index` of each query's nearest training sample, its `distance`, and its `ratio` to the next ones."""

    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray

    def __getitem__(self, rows: slice) -> "Neighbours":
        """Select queries."""
        return Neighbours(self.index[rows], self.distance[rows], self.ratio[rows])


@dataclass(frozen=True)
class Audit:
    """Hold the neighbours of generated and of held-out samples in each space.

    - `made[space]`, `held_out[space]`: their neighbours among the training samples; `index` is into the data set
    - `whose` `(N,)`: whose (which patient's) each of these held-out samples is, each its own where that is not known
    - `nearer[space]` `(B,)`: 1 where a generated sample is nearer to training than to as many held-out samples, half
      where it is as near
    - `searched`, `compared`: how many training samples were looked at, and how many of each kind for `nearer`
    """

    made: dict[str, Neighbours]
    held_out: dict[str, Neighbours]
    whose: np.ndarray
    nearer: dict[str, np.ndarray]
    searched: int
    compared: int


def audit(
    x: Mapping[str, Tensor], train: Dataset, rows: np.ndarray, test: Dataset, held_out: np.ndarray, seed: int = 0
) -> Audit | None:
    """Compare generated tuples `x[name]` `(B, C, *size)` in [0, 1] with the samples of `train` at `rows`.

    The samples of `test` at `held_out` say what is usual. Samples that lack a modality are passed over; None if that
    leaves none.
    """
    networks = {name: random_network(Modality(name, z.shape[1], tuple(z.shape[2:]))) for name, z in x.items()}
    spaces: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
        "pixels": flatten_tuples,
        "features": lambda images: torch.cat([networks[name].features(z) for name, z in images.items()], dim=1),
    }
    made = {name: space(x) for name, space in spaces.items()}
    unseen, there = _read(spaces, test, pieces(held_out, _CHUNK))
    num, num_unseen = len(made["pixels"]), len(unseen["pixels"])
    searches = {name: _Search(torch.cat([made[name], unseen[name]])) for name in spaces}
    index, compared, to_training = np.empty(0, int), 0, {}
    order = rows[shuffled(np.random.default_rng(seed), len(rows), whose(train, rows))]
    for part in pieces(order, max(1, min(_CHUNK, num_unseen))):
        vectors, whole = _read(spaces, train, [part])
        index = np.concatenate([index, whole])
        for name, search in searches.items():
            search.look_at(vectors[name])
        if 0 < len(index) <= num_unseen:
            compared, to_training = len(index), {name: search.distance[:num, 0] for name, search in searches.items()}
    if not to_training:
        return None
    answers = {name: search.neighbours(index) for name, search in searches.items()}
    beside = shuffled(np.random.default_rng(seed), num_unseen, whose(test, there))[:compared]  # as those of training
    nearer = {}
    for name in spaces:
        to_unseen, ours = nearest(made[name], unseen[name][beside]).distance, to_training[name].numpy()
        nearer[name] = (ours < to_unseen) + 0.5 * (ours == to_unseen)
    return Audit(
        {name: answer[:num] for name, answer in answers.items()},
        {name: answer[num:] for name, answer in answers.items()},
        whose(test, there),
        nearer,
        len(index),
        compared,
    )


def flatten_tuples(x: Mapping[str, Tensor]) -> Tensor:
    """Join all modalities of a tuple to one vector `(B, F)`, large images averaged down."""
    parts = []
    for image in x.values():
        small = resize(image.float(), tuple(min(side, LARGEST) for side in image.shape[2:]))
        parts.append(small.clamp(0, 1).flatten(1).cpu())
    return torch.cat(parts, dim=1)


def copies(made: Array, train: Array, held_out: Array, whose: np.ndarray | None = None) -> dict[str, float]:
    """Return the share of `made` `(B, F)` that looks like copies of `train` `(N, F)`, beside `held_out` real `(K, F)`.

    Rows are images or features of them, whoever made and read them; `whose` `(K,)` says whose (which patient's) each
    held-out one is. By name: `distance` and `ratio` (see above; .01 is usual), each with its `p`. Raises MandorlaError
    for rows that cannot be compared.
    """
    rows = {"made": made, "training": train, "held-out": held_out}
    rows = {name: code_rows(z, f"the {name} rows").float() for name, z in rows.items()}
    if len({z.shape[1] for z in rows.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in rows.items())
        raise MandorlaError(f"rows of different lengths cannot be compared: {shapes}")
    ours, usual = (nearest(rows[name], rows["training"]) for name in ("made", "held-out"))
    whose = np.arange(len(held_out)) if whose is None else np.asarray(whose)
    if len(whose) != len(held_out):
        raise MandorlaError(f"{len(whose)} patients do not say whose {len(held_out)} held-out rows are")
    found = {}
    for name in ("distance", "ratio"):
        pair = getattr(ours, name), getattr(usual, name)
        found |= {name: float(suspicious(*pair).mean()), f"{name} p": chance_of_as_many(*pair, whose)}
    return found


def nearest(queries: Tensor, train: Tensor) -> Neighbours:
    """Find the nearest row of `train` `(N, F)` for each row of `queries` `(B, F)`; the distance is root mean square."""
    search = _Search(queries)
    search.look_at(train)
    return search.neighbours(np.arange(len(train)))


def suspicious(samples: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return which of `samples` `(B,)` do not lie above the first percentile of `held_out` `(N,)`, bool."""
    return samples <= np.percentile(held_out, 1, method="inverted_cdf")


def usual_share(held_out: np.ndarray, whose: np.ndarray) -> float | None:
    """Return the share of `held_out` `(N,)` that those of others make `suspicious`; None where all are one's.

    `whose` `(N,)` says whose (which patient's) each is. About .01 of many, but 1 / N of few, and more where held-out
    samples occur in the training set too.
    """
    own = [whose == name for name in np.unique(whose)]
    if len(own) < 2:
        return None
    return float(np.concatenate([suspicious(held_out[mine], held_out[~mine]) for mine in own]).mean())


def effective_number(held_out: np.ndarray, whose: np.ndarray) -> float:
    """Return how many independent samples say as much as `held_out` `(N,)`: all, or fewer where patients are alike.

    `whose` `(N,)` says whose (which patient's) each is. With r the correlation of two samples of one patient and n of a
    patient's samples it is N / (1 + (sum n^2 / N - 1) r): N where r is 0 or each is a patient of its own, the number of
    patients where r is 1 and these have as many each. r is the intraclass correlation from the variances between and
    within patients, of normal scores, so that no outlier decides it; at least 0, and 1 of one patient.

    References: Kish, "Survey Sampling", 1965, section 5.4 (design effect); Donner, "A Review of Inference Procedures
    for the Intraclass Correlation Coefficient", 1986, https://doi.org/10.2307/1403259 (analysis of variance)
    """
    from scipy.stats import norm, rankdata

    index, counts = np.unique(whose, return_inverse=True, return_counts=True)[1:]
    num, patients = len(whose), len(counts)
    if patients == num:
        return float(num)
    usual = np.square(counts).sum() / num  # samples of the patient of a sample
    scores = norm.ppf((rankdata(held_out) - 0.5) / num)
    means = np.bincount(index, scores) / counts
    within = np.square(scores - means[index]).sum() / (num - patients)
    between = (counts * np.square(means - scores.mean())).sum() / max(1, patients - 1)
    size = (num - usual) / max(1, patients - 1)
    spread = between + (size - 1) * within
    alike = max(0.0, (between - within) / spread) if patients > 1 and spread > 0 else 1.0
    return float(num / (1 + (usual - 1) * alike))


def chance_of_as_many(samples: np.ndarray, held_out: np.ndarray, whose: np.ndarray) -> float:
    """Return how probable it is that as many of `samples` `(B,)` are `suspicious`, or more, though none is a copy.

    If all are draws of one distribution, any order of them is as probable as any other. The b suspicious samples and
    the h of `held_out` `(N,)` that lie no farther are the nearest of all, a held-out one the last of them: of b + h - 1
    drawn from all B + N without replacement, at most h - 1 are held out. That counts in how uncertain the percentile
    of few samples is, and is exact where no two are equal and each is a patient's of its own. Where several are one
    patient's, as `whose` `(N,)` says, N is the `effective_number` and h has the same share of it, but is 1 at least.

    Reference: the hypergeometric distribution, as in Fisher, "The Logic of Inductive Inference", 1935,
    https://doi.org/10.2307/2342435
    """
    return float(_chances(len(samples), held_out, whose)[suspicious(samples, held_out).sum()])


def least_noticed(num: int, held_out: np.ndarray, whose: np.ndarray) -> float | None:
    """Return the least share of `num` samples that is too much for chance (`LEVEL`) if so many are `suspicious`.

    None where not even all would be: `held_out` `(N,)`, of patients as `whose` `(N,)` says, are too few to tell.
    """
    enough = np.flatnonzero(_chances(num, held_out, whose) <= LEVEL)
    return float(enough[0] / num) if len(enough) else None


def _chances(num: int, held_out: np.ndarray, whose: np.ndarray) -> np.ndarray:
    """Return for 0 .. num suspicious samples of `num` how probable as many or more are, `(num + 1,)`."""
    from scipy.stats import hypergeom

    independent = effective_number(held_out, whose)
    near = max(1, round(suspicious(held_out, held_out).sum() * independent / len(held_out)))
    unseen = max(1, round(independent))
    return hypergeom.cdf(near - 1, num + unseen, unseen, np.arange(num + 1) + near - 1)


class _Search:
    """Keep the nearest of all vectors looked at so far: `distance` and `place` `(B, k)`, nearest first."""

    def __init__(self, queries: Tensor) -> None:
        self.queries, self.seen = queries, 0
        self.distance = queries.new_empty(len(queries), 0)
        self.place = torch.empty(len(queries), 0, dtype=torch.long)

    def look_at(self, vectors: Tensor) -> None:
        places = torch.arange(self.seen, self.seen + len(vectors)).expand(len(self.queries), -1)
        distance = torch.cat([self.distance, torch.cdist(self.queries, vectors) / self.queries.shape[1] ** 0.5], dim=1)
        self.seen += len(vectors)
        self.distance, kept = distance.topk(min(1 + NEXT, self.seen), largest=False)
        self.place = torch.cat([self.place, places], dim=1).gather(1, kept)

    def neighbours(self, index: np.ndarray) -> Neighbours:
        """Return the nearest ones; the vector at place p is that of sample `index[p]`."""
        first, others = self.distance[:, 0], self.distance[:, 1:].mean(1)
        rounding = _ROUNDING * self.queries.square().mean(1).sqrt()
        ratio = torch.where(others > rounding, first / others, 1.0)  # of equal ones, as empty slices, none is a copy
        return Neighbours(index[self.place[:, 0].numpy()], first.numpy(), ratio.numpy())


def _read(
    spaces: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]], dataset: Dataset, parts: Iterable[np.ndarray]
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Return the vectors of the samples that have all modalities in every space, `(n, F)`, and their indices `(n,)`."""
    vectors: dict[str, list[Tensor]] = {name: [] for name in spaces}
    index = []
    for part in parts:
        batch = dataset.batch(part)
        whole = torch.stack(list(batch.present.values())).all(0)
        index.append(part[whole.numpy()])
        for name, space in spaces.items():
            vectors[name].append(space({modality: z[whole] for modality, z in batch.x.items()}))
    return {name: torch.cat(of_space) for name, of_space in vectors.items()}, np.concatenate(index)
