"""Whether generated images of different modalities belong together, as judged by one classifier per modality.

With c the shared and u_m the private parts, and J_m the judge of modality m:
- *self* and *cross* coherence: c is read from view i alone, u_j drawn from p(u_j | c), view j decoded; J_j must name
  the class of the source (self: i = j, cross: i != j);
- both by the number of views that c is read from: a random set of that many, another one for every sample;
- *swap* coherence: view m decoded from (c of one sample, u_m of another) must keep the class of the first and the
  private factor of the second;
- *joint* coherence: all J_m must agree on a jointly generated tuple. Its control decodes every view from the shared
  part of another tuple, independently per view: agreement must then fall to chance.

References: Shi et al., "Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models", 2019,
https://arxiv.org/abs/1911.03393 (coherence); Sutter et al., "Generalized Multimodal ELBO", 2021,
https://arxiv.org/abs/2105.02470 (PolyMNIST).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mandorla.errors import MandorlaError
from mandorla.evaluate.arrays import Array, classes, tensor
from mandorla.evaluate.judges import Judge
from mandorla.latents import Latents
from mandorla.model import Mandorla
from mandorla.vae.separation import partners

_CHUNK = 2000  # tuples whose images are read, or held after decoding, at once


def conditional_coherence(
    model: Mandorla,
    judges: Mapping[str, Judge],
    label: str,
    shared: Mapping[str, Tensor],
    truth: np.ndarray,
    seed: int,
    draw: Callable[[Tensor, int], Latents] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return self and cross coherence per sample, in [0, 1], `(M, B)` each: row i is of c read from view i, in order.

    Cross coherence is the mean over the other views. `shared[i]` is the shared part of all B samples read from view i
    alone; `truth` `(B,)` their classes. `draw` puts private parts beside a shared part, given a seed; by default stage
    2 does, by p(u | c).
    """
    own, others = [], []
    for number, (source, code) in enumerate(shared.items()):
        drawn = (draw or model.sample_private)(code, seed + number)
        right = dict(zip(judges, judge_decoded(model, judges, drawn, label) == truth, strict=True))
        own.append(right.pop(source))
        others.append(np.mean(list(right.values()), axis=0))
    return np.stack(own), np.stack(others)


def coherence_from(
    model: Mandorla,
    judges: Mapping[str, Judge],
    label: str,
    x: Mapping[str, Tensor],
    truth: np.ndarray,
    num: int,
    seed: int,
) -> np.ndarray:
    """Return coherence per sample `(B,)` where the shared part is read from `num` views, drawn anew for each sample.

    `x[name]` are B complete tuples, `truth` `(B,)` their classes; every view has a judge. Those that are not given are
    judged or, where all are given, all.
    """
    names = list(judges)
    order = np.random.default_rng([seed, num]).permuted(np.tile(np.arange(len(names)), (len(truth), 1)), axis=1)
    given = np.zeros(order.shape, bool)
    np.put_along_axis(given, order[:, :num], True, axis=1)
    present = {name: torch.as_tensor(given[:, m]) for m, name in enumerate(names)}
    shared = torch.cat(
        [
            model.encode(*({name: z[start : start + _CHUNK] for name, z in of.items()} for of in (x, present))).shared
            for start in range(0, len(truth), _CHUNK)
        ]
    )
    drawn = model.sample_private(shared, seed + num)
    right = judge_decoded(model, judges, drawn, label) == truth
    counts = ~given.T if num < len(names) else given.T
    return (right & counts).sum(0) / counts.sum(0)


def donors(whose: np.ndarray, seed: int) -> np.ndarray:
    """Return for each sample one of another patient `(B,)`, where `whose` `(B,)` says whose each is; all give once.

    A cyclic shift of a random order of patients by the samples of the largest: where one has more than half, some of
    its samples give to each other.
    """
    order = np.random.default_rng(seed).permutation(len(whose))
    _, first, patient = np.unique(np.asarray(whose)[order], return_index=True, return_inverse=True)
    patients = np.empty(len(order), int)
    patients[order] = first[patient]
    return partners(order, patients)


def swapped(
    model: Mandorla, latents: Latents, whose: np.ndarray, seed: int, residual: bool = False
) -> tuple[Latents, np.ndarray]:
    """Give every sample the private parts of one of another patient, or their residuals; return them and who gave.

    `whose` and who gave are `(B,)`.
    """
    donor = donors(whose, seed)
    private = latents[torch.as_tensor(donor)]
    return replace(model.to_residual(private) if residual else private, shared=latents.shared), donor


def judge_all(judges: Mapping[str, Judge], x: Mapping[str, Tensor], label: str) -> np.ndarray:
    """Return the class that each judge sees in its view, `(M, B)`."""
    return np.stack([judge.classes(x[name], label) for name, judge in judges.items()])


def judge_decoded(model: Mandorla, judges: Mapping[str, Judge], latents: Latents, label: str) -> np.ndarray:
    """Return the class that each judge sees in its view of decoded `latents`, `(M, B)`.

    Some samples at a time: images of all of them would take gigabytes.
    """
    views = replace(latents, private={name: latents.private[name] for name in judges})
    parts = [views[start : start + _CHUNK] for start in range(0, len(views), _CHUNK)]
    return np.concatenate([judge_all(judges, model.decode(part), label) for part in parts], axis=1)


def agreement(seen: Array) -> np.ndarray:
    """Return where all M judges name the same class; `seen` is `(M, B)`, the answer bool `(B,)`.

    Raises MandorlaError for other shapes.
    """
    found = tensor(seen, "the classes").numpy()
    if found.ndim != 2 or not len(found):
        raise MandorlaError(f"the classes have shape {found.shape}: expected (M, B), a row for each judge")
    return (found == found[0]).all(axis=0)


def judge_independent(
    model: Mandorla, judges: Mapping[str, Judge], latents: Latents, label: str, seed: int
) -> np.ndarray:
    """Return what `judge_decoded` does, each view decoded with the shared part of another sample, drawn for it alone.

    The control of agreement.
    """
    rng = np.random.default_rng(seed)
    seen = []
    for name, judge in judges.items():
        shuffled = latents.shared[torch.as_tensor(rng.permutation(len(latents)), device=latents.shared.device)]
        view = Latents(shuffled, {name: latents.private[name]})
        seen.append(judge_decoded(model, {name: judge}, view, label))
    return np.concatenate(seen)


def chance_agreement(labels: Array, num_views: int) -> float:
    """Return how often `num_views` independent views agree if each follows the class shares of `labels` `(N,)`.

    Raises MandorlaError for no labels, and those that are no integers.
    """
    shares = np.unique(classes(labels, "the labels"), return_counts=True)[1] / len(labels)
    return float(np.sum(shares**num_views))


def histogram_distance(a: Array, b: Array, num_classes: int) -> float:
    """Return the total variation between the class shares of labels `a` `(N,)` and `b` `(K,)`, in [0, 1].

    Raises MandorlaError for no labels, and those that are no integers in 0 .. num_classes - 1.
    """
    found = (classes(labels, f"the {which} labels", num_classes) for which, labels in (("first", a), ("second", b)))
    shares = [np.bincount(labels, minlength=num_classes) / len(labels) for labels in found]
    return float(0.5 * np.abs(shares[0] - shares[1]).sum())


def dependence(a: Array, b: Array, num_a: int, num_b: int) -> float:
    """Return the total variation between the joint shares of paired labels `a`, `b` `(N,)` and independent ones.

    In [0, 1]; about .2 sqrt(num_a num_b / N) of independent labels, by chance. Raises MandorlaError as
    `histogram_distance` does.
    """
    first, second = classes(a, "the first labels", num_a), classes(b, "the second labels", num_b)
    if len(first) != len(second):
        raise MandorlaError(f"{len(first)} and {len(second)} labels are no pairs: give as many")
    joint = np.zeros((num_a, num_b))
    np.add.at(joint, (first, second), 1 / len(first))
    return float(0.5 * np.abs(joint - joint.sum(1, keepdims=True) * joint.sum(0)).sum())
