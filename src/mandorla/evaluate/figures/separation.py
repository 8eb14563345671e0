"""How far c and u are apart without any label: swaps read again, retrieval, information, variance explained."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Dataset, evenly, pieces
from mandorla.device import own_random
from mandorla.evaluate.coherence import donors
from mandorla.evaluate.figures.subject import Codes, Subject, with_all
from mandorla.evaluate.information import critic_information, gaussian_information, principal
from mandorla.evaluate.record import Record, averaged, standard_error
from mandorla.evaluate.retrieval import ranks, recall_at
from mandorla.latents import SHARED, Components
from mandorla.vae.model import encode_batch
from mandorla.vae.separation import separation

_SEPARATED = 512  # samples that the separation is measured on at once
_PARTS = 4  # parts of the samples, at least, whose spread gives the standard error
DONORS = 8  # other samples whose parts stand in for a part that is not known
MOST = 1000  # candidates of a retrieval, pairs of codes that a critic is measured on
_FEW = 40  # samples below which no critic is trained


def separation_figures(s: Codes, part: Dataset) -> list[Record]:
    """Measure on the test samples of `part` what of c and u survives a swap: see `mandorla.vae.separation`."""
    places = np.random.default_rng(s.seed).permutation(len(s.test.indices))
    order, whose = s.test.indices[places], s.whose()[places]
    names = whose[np.sort(np.unique(whose, return_index=True)[1])]  # in the order of their first sample

    def measured(num: int) -> list[dict[str, float]]:
        """Divide the samples into parts, each patient's into one."""
        parts = [order[np.isin(whose, some)] for some in np.array_split(names, num)]
        return [separation(s.model.vae, part.batch(rows).to(s.model.device)) for rows in parts]

    most = max(1, len(names) // 2)  # of parts with two patients at least
    num = min(most, max(1, round(len(order) / _SEPARATED)))
    found = measured(num)
    parts = found if num >= _PARTS else measured(min(_PARTS, most))
    known = len(parts) > 1 and all(part.keys() == found[0].keys() for part in parts)
    spread = (
        f"±: from the spread over {len(parts)} parts of the samples." if known else "±: not known of so few samples."
    )
    reference = "of the variance; chance: always the same is read; ceiling: what went in"
    texts = {
        "shared_kept": (f"Share of c that is read again after a swap, {reference}; {spread}", "higher"),
        "private_kept": (f"Share of u that is read again after a swap, {reference}; {spread}", "higher"),
        "private_known": (
            "Leak: share of u that kernel ridge regression, at the ridge that does best, foretells from c, of other"
            f" samples (of other patients where these are known) than it is fitted to; chance: none; {spread}",
            "lower",
        ),
    }
    return [
        replace(
            s.record(f"separation/{name}", np.array([each[name] for each in found]), *text, chance=0.0),
            ceiling=1.0 if name.endswith("kept") else None,
            n=len(names),
            error=standard_error(np.array([each[name] for each in parts])) if known else None,
        )
        for name, text in texts.items()
        if all(name in each for each in found)
    ]


def retrieval_figures(s: Codes) -> list[Record]:
    """Measure how often the shared part of one modality finds that of another among many test samples."""
    records, scores, whose = [], {}, {}
    for given, wanted in permutations(s.names, 2):
        rows = np.flatnonzero(s.test.present[given] & s.test.present[wanted])
        rows = rows[evenly(len(rows), MOST)]
        if len(rows) < 2:
            continue
        whose[f"{given} to {wanted}"] = s.whose()[rows]
        found = ranks(s.test.alone[given][rows], s.test.alone[wanted][rows])
        for k, right in recall_at(found).items():
            scores.setdefault(k, {})[f"{given} to {wanted}"] = right
    for k, of_route in scores.items():
        groups = with_all(whose)
        for name, right in with_all(of_route).items():
            nums = [len(right)] if name else list(map(len, of_route.values()))
            among = " to ".join(map(str, sorted({min(nums), max(nums)})))
            text = (
                f"Share in which the shared part read from one modality finds its partner's among {among} test samples,"
                f" within the first {k} by cosine."
            )
            more = {"chance": sum(min(k, num) for num in nums) / sum(nums), "groups": groups[name]}
            records.append(s.record(f"retrieval/recall at {k}{name}", right, text, **more))
    return records


def information_figures(subject: Subject) -> list[Record]:
    """Estimate I(c; u) of each modality by two estimators; the control is what permuted pairs give: their zero.

    u is drawn from q(u | x, c): posterior means tell of c even in channels that carry nothing, below their noise.
    """
    s, data = subject.codes, subject.data
    texts = {
        "gaussian": "Leak: I(c; u) as if both were Gaussian, from their canonical correlations, on training samples;"
        " control: mean of {} permutations of the pairs",
        "critic": "Leak: I(c; u) by a critic trained on training samples (InfoNCE), measured on test samples; control:"
        " a second critic, trained on permuted pairs, mean of {} permutations of the test pairs",
    }
    train, here = _drawn(subject, data.train, s.train.indices)
    test, there = _drawn(subject, data.test, s.test.indices)
    values: dict[str, list[Record]] = {}
    for name in s.names:
        rows, new = (np.flatnonzero(present[name]) for present in (here, there))
        if min(len(rows), len(new)) < _FEW:
            continue
        new = new[evenly(len(new), MOST)]
        (c, new_c), (u, new_u) = (principal(train[part][rows], test[part][new]) for part in (SHARED, name))
        groups, new_groups = s.train.whose[rows], s.test.whose[new]
        known = {"groups": groups, "new_groups": new_groups}
        found = {"critic": critic_information(c, u, new_c, new_u, seed=s.seed, **known)}
        if len(rows) > 2 * (c.shape[1] + u.shape[1]):
            found["gaussian"] = gaussian_information(c, u, seed=s.seed, groups=groups)
        for kind, estimate in found.items():
            num, zero = len(np.unique(groups if kind == "gaussian" else new_groups)), estimate.zeros
            texts[kind] = texts[kind].format(len(zero))
            tested = "" if estimate.p is None else "; p: permutation test, one-sided"
            record = Record(f"information/{kind}/{name}", estimate.nats, None, num, f"{texts[kind]}{tested}.", "lower")
            values.setdefault(kind, []).append(
                replace(record, control=float(zero.mean()), seed=s.seed, unit="nats", p=estimate.p)
            )
    records = []
    for kind, each in values.items():
        records += [averaged(f"information/{kind}", each, f"{texts[kind]}; mean over modalities."), *each]
    return records


def _drawn(subject: Subject, dataset: Dataset, indices: np.ndarray) -> tuple[Components, dict[str, Tensor]]:
    """Return c and u, drawn from its posterior, of the samples at `indices`, and which modalities they have."""
    vae, parts = subject.model.vae, []
    with own_random(subject.seed):
        for rows in pieces(indices, _SEPARATED):
            batch = dataset.batch(rows).to(subject.model.device)
            encoded = encode_batch(vae, batch.x, batch.present)
            parts.append((encoded.draw(), batch.present))
    drawn, present = (
        {key: torch.cat([part[key] for part in each]).cpu() for key in each[0]} for each in zip(*parts, strict=True)
    )
    return drawn, present


def explained_figures(subject: Subject) -> list[Record]:
    """Measure how much of the variance of x the decoder explains by c alone and by u alone, the other one unknown.

    What is unknown is averaged over: x is decoded with that part of several other samples, which stand for all.
    """
    s, x = subject.codes, subject.complete(len(subject.translated.ids))
    whole = np.all([present.numpy() for present in subject.translated.present.values()], axis=0)
    whose = subject.translated.whose[whole]
    groups = with_all(dict.fromkeys(x, whose))
    if len(whose) <= DONORS:
        return []
    latents = s.model.encode(x)
    others = [torch.as_tensor(donors(whose, s.seed + draw)) for draw in range(DONORS)]
    of_others = [latents[donor] for donor in others]
    codes = {
        "shared alone": [replace(other, shared=latents.shared) for other in of_others],
        "private alone": [replace(latents, shared=other.shared) for other in of_others],
        "both": [latents],
    }
    guesses = {kind: [s.model.decode(z, refined=False) for z in each] for kind, each in codes.items()}
    share = {
        kind: {name: _explained(z, torch.stack([each[name] for each in made])) for name, z in x.items()}
        for kind, made in guesses.items()
    }
    records = []
    for kind in ("shared alone", "private alone"):
        text = (
            f"Share of the variance of x that the {kind.replace(' ', ' part ')} explains, the other averaged over"
            f" {DONORS} other samples; ceiling: by both."
        )
        for name, scores in with_all(share[kind]).items():
            more = {"chance": 0.0, "ceiling": float(with_all(share["both"])[name].mean()), "groups": groups[name]}
            records.append(s.record(f"explained/{kind}{name}", scores, text, "neither", **more))
    return records


def _explained(x: Tensor, guesses: Tensor) -> np.ndarray:
    """Return scores `(B,)` whose mean is the share of the variance of `x` `(B, ...)` explained by what `guesses` mean.

    `guesses` `(K, B, ...)` are draws: the variance of the mean of so few is taken off its error.
    """
    x, guesses = x.cpu().double().flatten(1), guesses.cpu().double().flatten(2)
    wrong = (x - guesses.mean(0)).square().sum(1)
    if len(guesses) > 1:
        wrong = wrong - guesses.var(0).sum(1) / len(guesses)
    spread = (x - x.mean(0)).square().sum(1)
    return (1 - wrong / spread.mean().clamp_min(1e-12)).numpy()
