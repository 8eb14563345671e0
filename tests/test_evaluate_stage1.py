"""Figures of stage 1 alone: of trained runs against a direct computation, of models that are right by construction."""

import numpy as np
import pytest
import torch
from evaluate_fakes import CLASSES, MODALITIES, BarModel

import mandorla
from mandorla.evaluate.figures.subject import Codes
from mandorla.evaluate.gather import choose, gather
from mandorla.evaluate.judges import find_judges
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.evaluate.stage1 import coherence_without_prior, stage1_figures
from mandorla.latents import Latents
from mandorla.vae.model import encode_batch


def figures(run, judges=None):
    model = mandorla.load(run)
    return model, {record.name: record for record in stage1_figures(model, judges or {}, {}, model.data())}


@pytest.mark.parametrize("name", ["polydigits", "phantom", "signals"])
def test_size_rate_and_likeness_are_those_of_the_validation_data(name, request):
    model, found = figures(request.getfixturevalue(f"{name}_run"))
    val = model.data().val
    batch = val.batch(np.arange(len(val)))
    encoded = encode_batch(model.vae, batch.x, batch.present)
    standard = torch.distributions.Normal(0.0, 1.0)
    psnrs, rates = {}, {}
    for modality, rows in batch.present.items():
        u, c = encoded.latents.private[modality][rows], encoded.latents.shared[rows]
        error = (model.vae.decode(modality, c, u).clamp(0, 1) - batch.x[modality][rows]).square().flatten(1).mean(1)
        psnrs[modality] = -10 * error.log10()
        posterior = torch.distributions.Normal(u, encoded.std[modality][rows])
        rates[modality] = torch.distributions.kl_divergence(posterior, standard).flatten(1).sum(1)
        assert found[f"reconstruction/psnr/{modality}"].value == pytest.approx(psnrs[modality].mean().item(), abs=1e-3)
        assert found[f"reconstruction/psnr/{modality}"].n == rows.sum()
    for record, values in (("reconstruction/psnr", psnrs), ("latents/rate", rates)):
        assert found[record].value == pytest.approx(torch.cat(list(values.values())).mean().item(), rel=1e-4)
    one = encoded.latents[:1].components
    assert found["latents/numbers"].value == sum(z.numel() for z in one.values())
    assert {f"separation/{name}" for name in ("shared_kept", "private_kept", "private_known")} <= found.keys()
    assert not any(record.name.startswith(("coherence", "shared", "private")) for record in found.values())


def test_classes_are_probed_and_judged(scans_run, tmp_path):
    model = mandorla.load(scans_run)
    data = model.data()
    judges = find_judges(tmp_path / "judges", data, model.recipe.evaluate, 0, "cpu")
    _, found = figures(scans_run, judges)
    names = {"shared/class", "private/class linear", "private/class mlp", "coherence/cross shuffled"}
    assert names | {"coherence/self prior"} <= found.keys()
    for record in found.values():
        assert np.isfinite(record.value) and record.n > 0
        assert (record.error is None) == ("not known of so few" in record.definition or record.n == 1)
        assert record.definition.endswith(".") and " test " not in record.definition


class Oracle:
    """Know the bar of an image without training."""

    heads = {"bar": None}

    def probabilities(self, x, factor):
        return torch.nn.functional.one_hot(torch.as_tensor(self.classes(x, factor)), CLASSES).numpy()

    def classes(self, x, factor):
        return x[:, 0].amax(1)[:, ::2].argmax(1).numpy()


class Leaky(BarModel):
    """Keep the bar in the private parts alone."""

    def encode(self, x, present=None):
        columns = {name: image[:, 0].amax(1)[:, ::2] for name, image in x.items()}
        return Latents(torch.zeros(len(next(iter(x.values()))), CLASSES), columns)

    def decode(self, latents, refined=True):
        halves = {name: torch.zeros(len(u), 2) for name, u in latents.private.items()}
        parts = [super(Leaky, self).decode(Latents(u, {name: halves[name]})) for name, u in latents.private.items()]
        return {name: x for part in parts for name, x in part.items()}


@pytest.mark.parametrize("model", [BarModel(), Leaky()])
def test_coherence_tells_a_class_in_c_from_one_in_u(model):
    settings = EvaluateConfig(label="bar", num_generated=100)
    judges = {m.name: Oracle() for m in MODALITIES}
    data = model.data()
    train, test = (gather(model, part, choose(part, 300, 0), judges) for part in (data.train, data.test))
    found = {r.name: r for r in coherence_without_prior(Codes(model, settings, 0, judges, train, test))}
    assert set(found) == {f"coherence/{kind} {draw}" for kind in ("self", "cross") for draw in ("shuffled", "prior")}
    for record in found.values():
        assert record.ceiling == 1
        assert record.value == 1 if type(model) is BarModel else abs(record.value - record.chance) < 0.15
