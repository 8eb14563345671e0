import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage, stats

from mandorla.data import load_data
from mandorla.data.phantom import ANATOMY, CONTRASTS, NOISE, TISSUES, PhantomConfig, bias_basis, spin_echo
from mandorla.data.random import Draws


@pytest.fixture(scope="module")
def splits():
    return load_data(PhantomConfig(num_train=600), seed=0)


@pytest.fixture(scope="module")
def batch(splits):
    return splits.train.batch(range(600))


@pytest.mark.parametrize("size", [(48, 48), (40, 32), (16, 24, 20)])
def test_contract(size):
    splits = load_data(PhantomConfig(size=size, num_train=9), seed=0)
    assert [(m.name, m.shape) for m in splits.modalities] == [("t1", (1, *size)), ("t2", (1, *size))]
    batch, one = splits.train.batch(range(9)), splits.train.batch([5])
    for name, x in batch.x.items():
        assert x.shape == (9, 1, *size)
        assert x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1
        torch.testing.assert_close(one.x[name], x[5:6], atol=1e-5, rtol=0)  # sums of another batch size differ in order
        assert batch.factors[f"clean_{name}"].shape == x.shape
    assert batch.factors["lesion_mask"].shape == (9, *size)
    assert batch.factors["lesion_position"].shape == (9, len(size))
    assert batch.factors["anatomy"].shape == (9, len(ANATOMY))


def test_parts_and_seeds_differ(splits):
    other = load_data(PhantomConfig(num_train=600), seed=1)
    assert torch.equal(splits.test.batch([0]).x["t1"], other.test.batch([0]).x["t1"])
    images = [s.batch([0]).x["t1"] for s in (splits.train, other.train, splits.val, splits.test)]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_spin_echo_equation():
    """One pixel of half white matter, half fluid; TR = T1 and TE = T2 of white matter, by hand."""
    white, fluid = TISSUES["white"], TISSUES["fluid"]
    half = np.full((1, 1, 1), 0.5, np.float32)
    signal = spin_echo({"white": half, "fluid": half}, np.array([white.t1]), np.array([white.t2]))
    by_white = 0.77 * (1 - np.exp(-1)) * np.exp(-1)
    by_fluid = (1 - np.exp(-500 / 2569)) * np.exp(-70 / 329)
    assert signal.item() == pytest.approx(0.5 * by_white + 0.5 * by_fluid, rel=1e-6)
    assert fluid.proton_density == 1


def test_contrasts_are_those_of_t1_and_t2(splits):
    """White is brighter than grey and fluid in T1, darker in T2, by the middle TR and TE."""
    tissues = {name: np.ones((1, 1), np.float32) for name in ("white", "grey", "fluid")}
    level = {}
    for name, contrast in CONTRASTS.items():
        tr, te = np.array([np.mean(contrast.tr)]), np.array([np.mean(contrast.te)])
        level[name] = [spin_echo({tissue: one}, tr, te).item() for tissue, one in tissues.items()]
    assert level["t1"][0] > 1.15 * level["t1"][1] > 1.5 * level["t1"][2]
    assert level["t2"][2] > 1.5 * level["t2"][1] > 1.8 * level["t2"][0]


@pytest.mark.parametrize("name", ["t1", "t2"])
def test_images_follow_from_their_factors(batch, name):
    """In white matter log(image / clean) is a constant, from TR and TE, and the bias field: a fit finds both again."""
    factors, contrast = batch.factors, CONTRASTS[name]
    axis = (np.arange(48) + 0.5) / 24 - 1
    basis = bias_basis([axis[:, None], axis[None, :]])
    one = {"white": np.ones((1, 1), np.float32)}
    middle = spin_echo(one, *(np.array([np.mean(limits)]) for limits in (contrast.tr, contrast.te))).item()
    errors = []
    for i in range(200):
        white = np.abs(factors[f"clean_{name}"][i, 0] - contrast.gain * middle) < 1e-4
        white &= ~ndimage.binary_dilation(factors["lesion_mask"][i], iterations=3)
        terms = np.column_stack([np.ones(white.sum()), basis[:, white].T])
        ratio = np.log(batch.x[name][i, 0].numpy()[white] / (contrast.gain * middle))
        found = np.linalg.lstsq(terms, ratio, rcond=None)[0]
        level = spin_echo(one, factors[f"tr_{name}"][i : i + 1], factors[f"te_{name}"][i : i + 1]).item()
        errors.append(found - [np.log(level / middle), *factors[f"bias_{name}"][i]])
    errors = np.array(errors)
    assert np.abs(np.median(errors, axis=0)).max() < 0.01
    assert np.median(np.abs(errors), axis=0)[:3].max() < 0.02  # level and slopes; without the bias, .06


def test_background_noise_is_rician(batch):
    """Where there is no signal the magnitude follows Rayleigh's law, independently in both images."""
    t1, t2 = (batch.x[name][:200, 0, :3, :3].numpy().ravel() for name in ("t1", "t2"))
    for noise in (t1, t2):
        assert stats.kstest(noise, stats.rayleigh(scale=NOISE).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(t1, t2)[0, 1]) < 5 / np.sqrt(t1.size)


def test_lesion_shows_in_t2_alone():
    """The same samples drawn with and without the lesion: t1 is equal bit by bit, t2 is brighter within the mask."""
    dataset = load_data(PhantomConfig(), seed=0).train
    with_lesion = dataset.batch(range(40))
    dataset._lesion = lambda draws, white, factors: np.zeros_like(white)
    without = dataset.batch(range(40))
    present, mask = with_lesion.factors["lesion_present"], with_lesion.factors["lesion_mask"]
    assert 8 < present.sum() < 32
    assert torch.equal(with_lesion.x["t1"], without.x["t1"])
    change = (with_lesion.x["t2"] - without.x["t2"])[:, 0].numpy()
    assert not change[~present].any()
    assert not mask[~present].any()
    far = ~ndimage.binary_dilation(mask[present], structure=np.ones((1, 3, 3)), iterations=2)
    assert np.abs(change[present][far]).max() < 0.02
    for i in np.flatnonzero(present & (mask.sum(axis=(1, 2)) > 4)):
        assert change[i][mask[i]].mean() > 0.1


def test_lesion_is_a_coin_toss_in_white_matter(batch):
    factors = batch.factors
    present = factors["lesion_present"]
    assert stats.binomtest(int(present.sum()), len(present)).pvalue > 1e-3
    pixel = np.floor((factors["lesion_position"] + 1) * 24).astype(int)
    assert factors["lesion_mask"][(np.arange(600), *pixel.T)][present].mean() > 0.99
    for value in (factors["anatomy"].T[3], factors["tr_t1"], factors["te_t2"]):
        assert stats.ttest_ind(value[present], value[~present]).pvalue > 1e-3


def test_anatomy_is_shared_and_contrast_private(batch):
    factors = batch.factors
    ventricle_like = (factors["clean_t2"][:, 0] > 0.7).mean(axis=(1, 2))
    width = factors["anatomy"][:, list(ANATOMY).index("ventricle_width")]
    assert np.corrcoef(ventricle_like, width)[0, 1] > 0.3
    private = [factors[key] for key in ("tr_t1", "te_t1", "tr_t2", "te_t2")]
    private += list(factors["bias_t1"].T) + list(factors["bias_t2"].T) + list(factors["anatomy"].T)
    correlation = np.corrcoef(np.stack(private)) - np.eye(len(private))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(600)


def test_smooth_field_is_standard():
    dataset = load_data(PhantomConfig(size=(32, 32, 32)), seed=0).train
    field = dataset._smooth_field(Draws(0, range(60), "field"), 4, (0.5, 2.0))
    assert field.shape == (60, 32, 32, 32)
    assert field.mean() == pytest.approx(0, abs=0.05)
    assert field.var() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=1)).max() < 2 * np.pi * 2.0 * 2 / 32 * np.sqrt(2 / 4) * 4  # steepest slope


@pytest.mark.parametrize("size", [(48,), (8, 8), (32, 32, 32, 32)])
def test_refuses_odd_sizes(size):
    with pytest.raises(ValidationError, match="two or three numbers"):
        PhantomConfig(size=size)
