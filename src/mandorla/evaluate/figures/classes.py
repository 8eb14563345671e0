"""What the shared and the private parts know of the class and of each modality's own factor, by probes."""

from dataclasses import replace

import numpy as np
import torch

from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.probes import HIDDEN
from mandorla.evaluate.record import Record

_MLP = f"probe with {HIDDEN} hidden units for"


def class_figures(subject: Codes) -> list[Record]:
    """Measure what the shared and private parts know of the class and of the private factor."""
    s, views, train, test = subject, subject.views, subject.train, subject.test
    if not views:
        return []
    label, known = s.settings.label, s.reference
    judged = {view: s.judged(label, view) for view in views}
    records = [
        s.record(
            "ceiling/class",
            definition=f"Accuracy of '{label}' by a supervised classifier on real test images, mean over views.",
            chance=known["chance"],
            **s.joined(judged, label),
        )
    ]
    shared, folded = (
        {v: s.read_off(kind, train.alone[v], label, v, test.alone[v]) for v in views} for kind in ("linear", "mlp")
    )
    own = [view for view in views if view in test.latents.private]  # a model of somebody else's may have none
    linear, mlp = (
        {v: s.read_off(kind, train.latents.private[v], label, v, test.latents.private[v]) for v in own}
        for kind in ("linear", "mlp")
    )
    probes = {
        "shared/class": (shared, "Logistic regression of '{}' on the shared part read from one view alone", "higher"),
        "shared/class mlp": (folded, f"A {_MLP} '{{}}' on the same shared part", "higher"),
        "private/class linear": (linear, "Leak: logistic regression of '{}' on the private part", "lower"),
        "private/class mlp": (mlp, f"Leak: a {_MLP} '{{}}' on the private part", "lower"),
    }
    for name, (scores, text, better) in probes.items():
        if not scores:
            continue
        reference = {**known, "better": better}
        text = text.format(label)
        records.append(s.record(name, definition=f"{text}, mean over views.", **s.joined(scores, label), **reference))
        for view, right in scores.items():
            reference |= {"ceiling": float(judged[view].mean()), "groups": s.whose(view, label)}
            records.append(s.record(f"{name}/{view}", right, f"{text}, {view}.", **reference))
    if all(present.all() for part in (train, test) for present in part.present.values()):
        votes = sum(np.log(test.verdicts[view][label] + 1e-9) for view in views).argmax(1) == test.factors[label]
        votes = votes[test.known(label)]
        right = s.read_off("linear", train.latents.shared, label, views[0], test.latents.shared)
        text = f"Logistic regression of '{label}' on the shared part read from all views; ceiling: all judges together."
        best = {"chance": known["chance"], "ceiling": float(votes.mean())}
        records.append(s.record("shared/class/all", right, text, **best, groups=s.whose(views[0], label)))
    return records + _private_factor_figures(subject) + _residual_figures(subject)


def _residual_figures(subject: Codes) -> list[Record]:
    """Measure what the residual private parts know of the class, a leak, and of each view's own factor.

    Beside it stands what the private parts themselves know, of the same few samples.
    """
    s, num = subject, subject.settings.num_residual
    if not num or not s.model.draws or s.model.recipe.diffusion.mode == "private":
        return []
    few = replace(s, train=s.train.thinned(num), test=s.test.thinned(num))
    plain = few.train.latents, few.test.latents
    codes = {"plain": plain, "residual": [s.model.to_residual(latents) for latents in plain]}
    label, own, factors = s.settings.label, s.settings.private_label, s.private_factors
    asked = []
    for kind, text in (("linear", "logistic regression of"), ("mlp", f"a {_MLP}")):
        asked.append((f"class {kind}", kind, dict.fromkeys(s.views, label), f"Leak: {text} '{label}'"))
        name, text = f"{own} {kind}".removesuffix(" linear"), f"{text[0].upper()}{text[1:]} each view's own '{own}'"
        asked += [(name, kind, factors, text)] if factors else []
    records = []
    for name, kind, factors, text in asked:
        scores = {
            which: {v: few.read_off(kind, a.private[v], factor, v, b.private[v]) for v, factor in factors.items()}
            for which, (a, b) in codes.items()
        }
        text += (
            f" on the residual private part, fitted on {len(plain[0])} samples, mean over views; control: the private"
            " part itself, on the same samples."
        )
        leak = text.startswith("Leak")
        reference = {**(s.reference if leak else s.private_reference), "better": "lower" if leak else "higher"}
        reference["control"] = float(np.concatenate(list(scores["plain"].values())).mean())
        told = few.joined(scores["residual"], factors)
        records.append(s.record(f"private/residual/{name}", definition=text, **told, **reference))
    return records


def _private_factor_figures(subject: Codes) -> list[Record]:
    """Measure what the private and, as a leak, the shared part of each view know of its own factor."""
    s, kind, factors = subject, subject.settings.private_label, subject.private_factors
    if not factors:
        return []
    reference = s.private_reference
    records = []
    for probe, text in (("linear", "Logistic regression of"), ("mlp", f"A {_MLP}")):
        shared = {v: s.read_off(probe, s.train.alone[v], f, v, s.test.alone[v]) for v, f in factors.items()}
        private = {
            v: s.read_off(probe, s.train.latents.private[v], f, v, s.test.latents.private[v])
            for v, f in factors.items()
            if v in s.test.latents.private
        }
        of = f"{text} each view's own '{kind}' on its"
        leak = f"Leak: {of[0].lower()}{of[1:]} shared part, mean over views."
        name = kind if probe == "linear" else f"{kind} {probe}"
        if private:
            text = f"{of} private part, mean over views."
            records.append(s.record(f"private/{name}", definition=text, **s.joined(private, factors), **reference))
        leaked = s.joined(shared, factors)
        records.append(s.record(f"shared/{name}", definition=leak, better="lower", **leaked, **reference))
    return records + _faint_figures(subject)


def _faint_figures(subject: Codes) -> list[Record]:
    """Measure what a shared vector knows of its own view's factor however faintly, and above the noise on it."""
    s, kind, factors = subject, subject.settings.private_label, subject.private_factors
    if any(c.ndim > 2 or s.train.present[v].sum() < 10 * c.shape[1] for v, c in s.train.alone.items()):
        return []  # whitened, so many numbers tell nothing
    noise = s.model.recipe.vae.loss.shared_noise if s.model else 0
    generator = torch.Generator().manual_seed(s.seed)
    text = f"Leak: a {_MLP} each view's own '{kind}' on its shared part"
    faint = "whitened, so that what is there in the faintest direction counts like the rest"
    asked = {"faint": (0.0, f"{text}, {faint}")}
    if noise:
        asked["above noise"] = noise, f"{text} with the noise of {noise:g} under which decoders learn it, {faint}"
    records = []
    for name, (std, text) in asked.items():
        train, test = (
            {v: c + std * torch.randn(c.shape, generator=generator) for v, c in of.alone.items()}
            for of in (s.train, s.test)
        )
        scores = {v: s.read_off("mlp", train[v], f, v, test[v], whiten=True) for v, f in factors.items()}
        told = s.joined(scores, factors)
        definition = f"{text}; mean over views."
        records.append(
            s.record(f"shared/{kind} {name}", definition=definition, better="lower", **told, **s.private_reference)
        )
    return records
