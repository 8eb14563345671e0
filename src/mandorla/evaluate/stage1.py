"""Figures of stage 1 alone, on validation data: what latent sizes and terms of the loss are judged by.

Without stage 2 no p(u | c) is at hand. Cross coherence, a view decoded from another view's shared part, is measured
with two stand-ins for it: u of another sample (*shuffled*: right over all samples, blind to c) and u from N(0, I)
(*prior*: what the KL term asks for).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from mandorla.data.dataset import Dataset, Splits, evenly, pieces
from mandorla.errors import MandorlaWarning
from mandorla.evaluate.coherence import conditional_coherence, donors
from mandorla.evaluate.figures.classes import class_figures
from mandorla.evaluate.figures.quantities import quantity_figures
from mandorla.evaluate.figures.separation import separation_figures
from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.images import psnr
from mandorla.evaluate.judges import Judge
from mandorla.evaluate.record import Record
from mandorla.latents import Latents
from mandorla.model import Mandorla
from mandorla.vae.losses import kl
from mandorla.vae.model import encode_batch

_CHUNK = 250


def stage1_figures(
    model: Mandorla, judges: Mapping[str, Judge], gauges: Mapping[str, Judge], data: Splits
) -> list[Record]:
    """Return sizes, rate, likeness and separation and, where `judges` know the class, probes and coherence.

    Where `gauges` know numbers, these are probed too. `data` are those of the model's run; probes are fitted on
    training samples.
    """
    settings = model.recipe.evaluate.model_copy(update={"num_residual": 0})
    seed = model.recipe.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MandorlaWarning)  # of strange inputs: validation samples are what they are
        train = gather(model, data.train, choose(data.train, settings.num_train, seed), {})
        val = gather(model, data.val, choose(data.val, settings.num_test, seed), judges, gauges)
    codes = Codes(model, settings, seed, judges, train, val)
    with threadpool_limits(1, user_api="blas"):  # its threads wait for each other, long
        records = [_size(codes), *_likeness(codes, data.val), *separation_figures(codes, data.val)]
        records += class_figures(codes) + quantity_figures(codes) + coherence_without_prior(codes)
    return [replace(record, definition=record.definition.replace(" test ", " validation ")) for record in records]


def _size(s: Codes) -> Record:
    numbers = sum(math.prod(shape) for shape in s.model.vae.layout.shapes.values())
    return s.record("latents/numbers", np.array([numbers]), "Numbers in c and the u of all modalities.", "lower")


def _likeness(s: Codes, val: Dataset) -> list[Record]:
    """Measure what u costs and what it and c give."""
    rates: dict[str, list[np.ndarray]] = {name: [] for name in s.names}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in s.names}
    for indices in pieces(s.test.indices, _CHUNK):
        batch = val.batch(indices).to(s.model.device)
        encoded = encode_batch(s.model.vae, batch.x, batch.present)
        decoded = s.model.decode(encoded.latents, refined=False)
        for name, rows in batch.present.items():
            rate = kl(encoded.latents.private[name][rows], encoded.std[name][rows].log())
            rates[name].append(rate.double().cpu().numpy())
            scores[name].append(psnr(decoded[name][rows], batch.x[name][rows]))
    joined = [{name: np.concatenate(parts) for name, parts in of.items()} for of in (rates, scores)]
    text = "KL(q(u | x, c) || N(0, I)) of a modality in nats, mean over modalities."
    return [
        s.record("latents/rate", definition=text, better="lower", unit="nats", **s.joined(joined[0])),
        s.record(
            "reconstruction/psnr",
            definition="Decoded from c and u, mean over modalities.",
            unit="dB",
            **s.joined(joined[1]),
        ),
        *(
            s.record(
                f"reconstruction/psnr/{name}",
                scores,
                f"PSNR of {name}, decoded from c and u.",
                unit="dB",
                groups=s.whose(name),
            )
            for name, scores in joined[1].items()
        ),
    ]


def coherence_without_prior(s: Codes) -> list[Record]:
    """Measure self and cross coherence with the two stand-ins for p(u | c); nothing where no class is known."""
    rows = s.labelled(s.settings.label) if s.views else s.complete
    rows = rows[evenly(len(rows), s.settings.num_generated)]
    if not s.views or len(rows) < 2:
        return []
    label, judges = s.settings.label, {view: s.judges[view] for view in s.views}
    private = {view: s.test.latents.private[view][rows] for view in s.views}
    whose = s.whose()[rows]
    reference = {**s.reference, "groups": whose}
    draws: dict[str, tuple[Callable[[Tensor, int], Latents], str]] = {
        "shuffled": (lambda c, seed: Latents(c, _shuffled(private, whose, seed)), "the u of another sample"),
        "prior": (lambda c, seed: Latents(c, _standard_normal(private, seed)), "u from N(0, I)"),
    }
    alone = {view: s.test.alone[view][rows] for view in s.views}
    truth = s.test.factors[label][rows]
    records = []
    for name, (draw, text) in draws.items():
        for kind, scores in zip(
            ("self", "cross"), conditional_coherence(s.model, judges, label, alone, truth, s.seed, draw), strict=True
        ):
            read = "its own" if kind == "self" else "another view's"
            text_of = f"Share in which a view, decoded from {read} c and {text}, is judged to show the source's class."
            records.append(s.record(f"coherence/{kind} {name}", scores.mean(0), text_of, **reference))
    return records


def _shuffled(private: dict[str, Tensor], whose: np.ndarray, seed: int) -> dict[str, Tensor]:
    donor = torch.as_tensor(donors(whose, seed))
    return {name: u[donor] for name, u in private.items()}


def _standard_normal(private: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(u.shape, generator=generator) for name, u in private.items()}
