"""What the shared and the private parts know of factors that are numbers, such as an age or an echo time, by R2."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mandorla.evaluate.arrays import columns
from mandorla.evaluate.figures.subject import Codes, with_all
from mandorla.evaluate.probes import HIDDEN, Kind, explained, features, regress
from mandorla.evaluate.record import Better, Record

_KINDS: dict[Kind, str] = {"linear": "ridge regression", "mlp": f"a probe with {HIDDEN} hidden units"}
_ENOUGH = 10  # training samples for each number of a code that a network needs to find more in it than a line does


def quantity_figures(subject: Codes) -> list[Record]:
    """Measure which share of the variance of each number probes foretell from c of one modality and from u.

    What is a modality's own belongs into its u, and in c it is a leak; what the whole sample has should be in c as far
    as all modalities show it. The ceiling is a supervised network's on images.
    """
    s = subject
    if not s.quantities:
        return []
    codes = {
        "shared": (s.train.alone, s.test.alone),
        "private": (s.train.latents.private, s.test.latents.private),
    }
    records = []
    for part, (train, test) in codes.items():
        for kind, text in _KINDS.items():
            said = _said(s, kind, train, test)
            records += _figures(s, part, "" if kind == "linear" else f" {kind}", said, text)
    if noise := s.model.recipe.vae.loss.shared_noise:
        generator = torch.Generator().manual_seed(s.seed)
        noisy = [
            {view: c + noise * torch.randn(c.shape, generator=generator) for view, c in of.items()}
            for of in codes["shared"]
        ]
        text = f"{_KINDS['linear']}, under the noise of {noise:g} with which decoders learn it"
        records += _figures(s, "shared", " above noise", _said(s, "linear", *noisy), text)
    return records


def _said(
    s: Codes, kind: Kind, train: Mapping[str, Tensor], test: Mapping[str, Tensor]
) -> dict[str, dict[str, np.ndarray]]:
    """Return what a probe of each view's codes says of each number, on the test samples that have both, by name.

    Numbers that the same samples have are asked for together: one probe for all. Networks are asked of short codes.
    """
    said: dict[str, dict[str, np.ndarray]] = {name: {} for name in s.quantities}
    for view in test:
        asked: dict[bytes, list[str]] = {}
        for name, factors in s.quantities.items():
            if view in factors:
                rows = [part.known(factors[view], view) for part in (s.train, s.test)]
                asked.setdefault(np.concatenate(rows).tobytes(), []).append(name)
        for names in asked.values():
            factors = [s.quantities[name][view] for name in names]
            rows, new = (part.known(factors[0], view) for part in (s.train, s.test))
            values = [columns(s.train.factors[factor])[rows] for factor in factors]
            code, test_code = features(train[view])[rows], features(test[view])[new]
            if kind == "mlp" and len(code) < _ENOUGH * code.shape[1]:
                continue
            guess = regress(kind, code, np.concatenate(values, 1), test_code, s.seed)
            ends = np.cumsum([each.shape[1] for each in values])[:-1]
            said |= {
                name: said[name] | {view: each} for name, each in zip(names, np.split(guess, ends, 1), strict=True)
            }
    return said


def _figures(s: Codes, part: str, suffix: str, said: Mapping[str, Mapping[str, np.ndarray]], how: str) -> list[Record]:
    """Return the record of each number, mean over modalities and of each one."""
    records = []
    for name, of in said.items():
        factors = s.quantities[name]
        truth = {view: columns(s.test.factors[factors[view]])[s.test.known(factors[view], view)] for view in of}
        scores = {view: explained(truth[view], guess) for view, guess in of.items()}
        scores = {view: score for view, score in scores.items() if np.isfinite(score).all()}
        if not scores:
            continue
        ceiling = {
            view: explained(truth[view], s.test.measured[view][factors[view]][s.test.known(factors[view], view)])
            for view in scores
        }
        own = any(factor.endswith(f"_{view}") for view, factor in factors.items())
        better: Better = ("lower" if own else "higher") if part == "shared" else ("higher" if own else "neither")
        leak = "Leak: s" if better == "lower" else "S"
        whose = f"each modality's own '{name}'" if own else f"'{name}'"
        code = "c, read from that modality alone" if part == "shared" else "the private part of a modality"
        called = f"{name} (number)" if name in ("class", s.settings.private_label) else name  # as classes' figures are
        groups = with_all({view: s.whose(view, factors[view]) for view in scores})
        tops = with_all(ceiling)
        for view, score in with_all(scores).items():
            text = (
                f"{leak}hare of the variance of {whose} (R2) that {how} foretells from {code}"
                f"{', ' + view[1:] if view else ', mean over modalities'}; ceiling: a supervised network on images."
            )
            more = {"chance": 0.0, "ceiling": float(tops[view].mean()), "groups": groups[view]}
            records.append(s.record(f"{part}/{called}{suffix}{view}", score, text, better, **more))
    return records
