"""Augmentation: one geometry per sample, intensities per modality, the same at every resume, off unless asked for."""

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from tiny import interrupted, latents_of, same_training, scans_recipe, stage_1, write_scans

from mandorla.data.augment import Augment, AugmentConfig, _Geometry
from mandorla.data.dataset import Batch, Modality, all_present
from mandorla.data.random import Draws
from mandorla.errors import MandorlaError
from mandorla.vae.model import encode_batch
from mandorla.vae.training import train_vae

WARPS = {"rotate": 30.0, "scale": 0.2, "shift": 0.1, "elastic": 0.03}
COLOURS = {"gamma": 0.5, "gain": 0.2, "bias": 0.1, "noise": 0.05}


def checkerboard(*size: int) -> torch.Tensor:
    """Return eight of them `(8, 1, *size)`, of fields of 4 pixels, with one corner that tells up from down."""
    board = sum(torch.meshgrid(*(torch.arange(n) // 4 for n in size), indexing="ij")) % 2
    board[tuple(slice(n // 4) for n in size)] = 1
    return board.float().expand(8, 1, *size).clone()


def batch_of(**x: torch.Tensor) -> Batch:
    return Batch(dict(x), all_present(x), {"digit": np.arange(len(next(iter(x.values()))))})


def augment(config: AugmentConfig, batch: Batch, seed: int = 0, step: int = 0, indices=None) -> Batch:
    modalities = [Modality(name, x.shape[1], tuple(x.shape[2:])) for name, x in batch.x.items()]
    indices = np.arange(len(next(iter(batch.x.values())))) if indices is None else np.array(indices)
    return Augment(config, modalities, seed)(batch, indices, step)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 20, 24)])
@pytest.mark.parametrize("strengths", [*({name: value} for name, value in WARPS.items()), WARPS | {"flip": (0, 1)}])
def test_modalities_and_masks_stay_aligned(size, strengths):
    board = checkerboard(*size)
    batch = batch_of(t1=board, t2=board.repeat(1, 2, *[1] * len(size)))
    batch.factors |= {"lesion_mask": (board[:, 0] > 0.5).numpy(), "volume": np.arange(8.0)}
    moved = augment(AugmentConfig(**strengths), batch)
    assert torch.equal(moved.x["t1"], moved.x["t2"][:, :1])
    assert torch.equal(moved.x["t1"], moved.x["t2"][:, 1:])
    assert ((moved.x["t1"] - board).flatten(1).abs().mean(1) > 0.01).sum() >= 7, "it does move images"
    clear = (moved.x["t1"][:, 0] - 0.5).abs() > 0.45
    mask = torch.from_numpy(moved.factors["lesion_mask"])
    assert mask.dtype == torch.bool
    assert clear.float().mean() > 0.05
    assert torch.equal(mask[clear], moved.x["t1"][:, 0][clear] > 0.5)
    assert moved.factors["volume"] is batch.factors["volume"]
    assert torch.equal(batch.x["t1"], board), "what is given stays as it is"


def test_modalities_of_other_resolution_stay_aligned():
    smooth = torch.nn.functional.interpolate(torch.rand(8, 1, 4, 4), (64, 64), mode="bicubic").clamp(0, 1)
    moved = augment(AugmentConfig(**WARPS, flip=(1,)), batch_of(a=smooth, b=torch.nn.functional.avg_pool2d(smooth, 2)))
    inside = torch.nn.functional.avg_pool2d(moved.x["a"], 2)
    assert (inside - moved.x["b"]).abs().mean() < 0.01
    assert (inside - inside.roll(1, -1)).abs().mean() > 0.01  # a pixel aside would be seen


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(flip=()), AugmentConfig(rotate=0.0, noise=0.0)])
def test_zero_is_the_identity(config):
    batch = batch_of(a=torch.rand(8, 1, 9, 7), b=torch.rand(8, 3))
    after = augment(config, batch)
    assert all(torch.equal(after.x[name], x) for name, x in batch.x.items())
    assert after.factors == batch.factors


def test_tiny_strengths_are_nearly_the_identity():
    batch = batch_of(a=torch.rand(8, 1, 12, 9), b=torch.rand(8, 2, 12, 9))
    tiny = {name: 1e-6 for name in (*WARPS, *COLOURS)}
    for name, x in augment(AugmentConfig(**tiny), batch).x.items():
        torch.testing.assert_close(x, batch.x[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_flips_are_exact_and_come_half_the_time(axes):
    x = torch.rand(400, 1, 6, 5)
    moved = augment(AugmentConfig(flip=axes), batch_of(a=x, b=x)).x["a"]
    outcomes = [()] + [(axis,) for axis in axes] + ([axes] if len(axes) > 1 else [])
    counts = [sum(torch.equal(m, i.flip([a + 1 for a in o])) for m, i in zip(moved, x, strict=True)) for o in outcomes]
    assert sum(counts) == 400
    assert min(counts) > 400 / len(outcomes) * 0.8


@pytest.mark.parametrize("size", [(10, 10), (9, 14), (7, 10, 8)])
def test_warp_is_that_of_scipy(size):
    """Pixel by pixel in float64, from the drawn rotation, scale and shift; beyond an image its edge goes on."""
    config = AugmentConfig(rotate=40.0, scale=0.3, shift=0.2)
    x = torch.rand(8, 1, *size)
    geometry = _Geometry(config, Draws(0, range(8)), len(size), torch.device("cpu"))
    moved = geometry.move(x, "bilinear")
    longest = max(size)
    pixels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).reshape(len(size), -1)
    for image, shown, matrix, shift in zip(x, moved, geometry._matrix, geometry._shift, strict=True):
        centred = (pixels + 0.5) * 2 / longest - np.array(size)[:, None] / longest
        source = matrix.double().numpy() @ (centred - shift.double().numpy()[:, None])
        places = (source + np.array(size)[:, None] / longest) * longest / 2 - 0.5
        expected = map_coordinates(image[0].double().numpy(), places, order=1, mode="nearest").reshape(size)
        np.testing.assert_allclose(shown[0], expected, atol=1e-4)
        stretch = torch.linalg.svdvals(matrix)
        assert stretch.max() - stretch.min() < 1e-5, "rotation and scale alone"
        assert 1 / 1.3 - 1e-6 < stretch.max() < 1 / 0.7 + 1e-6


def test_the_smooth_field_moves_by_its_strength():
    geometry = _Geometry(AugmentConfig(elastic=0.05), Draws(0, range(300)), 2, torch.device("cpu"))
    ramp = torch.linspace(-1, 1, 41).view(1, 1, 1, 41).expand(300, 1, 41, 41)
    displacement = geometry.move(ramp, "bilinear")[:, :, 16:25, 16:25] - ramp[:, :, 16:25, 16:25]
    assert 0.03 < displacement.std() / 2 < 0.06  # as a share of the side, which is 2; between knots it is smaller
    assert displacement.diff(dim=-1).abs().mean() < 0.2 * displacement.abs().mean()


def test_what_is_drawn_depends_on_seed_step_and_sample_alone():
    x = torch.rand(8, 1, 12, 12)
    config = AugmentConfig(**WARPS, **COLOURS, flip=(0,))
    whole = augment(config, batch_of(a=x, b=x), step=3).x
    few = augment(config, batch_of(a=x[[5, 2]], b=x[[5, 2]]), step=3, indices=[5, 2]).x
    for name in ("a", "b"):
        torch.testing.assert_close(few[name], whole[name][[5, 2]], rtol=0, atol=1e-6)
        assert not torch.equal(augment(config, batch_of(a=x, b=x), step=4).x[name], whole[name])
        assert not torch.equal(augment(config, batch_of(a=x, b=x), step=3, seed=1).x[name], whole[name])


@pytest.mark.parametrize("name", COLOURS)
def test_intensities_are_of_each_modality_and_stay_in_the_unit_range(name):
    x = torch.rand(300, 1, 8, 8)
    x[:, :, 0, :4], x[:, :, 0, 4:] = 0, 1
    after = augment(AugmentConfig(**{name: COLOURS[name]}), batch_of(a=x, b=x)).x
    assert after["a"].min() >= 0 and after["a"].max() <= 1
    change = {key: (value - x).flatten(1) for key, value in after.items()}
    size = {key: value.abs().mean(1) for key, value in change.items()}
    assert all((value > 0).all() for value in size.values())
    assert abs(np.corrcoef(size["a"], size["b"])[0, 1]) < 0.2
    largest = {"gamma": 0.19, "gain": 0.2, "bias": 0.1, "noise": 0.3}[name]  # |x^g - x| at g = exp(.5); 6 noise_std
    assert 0.5 * largest < change["a"].abs().max() <= largest + 1e-6


def test_what_is_missing_stays_zero():
    x = torch.rand(8, 1, 8, 8)
    batch = batch_of(a=x, b=x * (torch.arange(8) > 3)[:, None, None, None])
    batch.present["b"] = torch.arange(8) > 3
    after = augment(AugmentConfig(**WARPS, **COLOURS), batch)
    assert not after.x["b"][:4].any()
    assert after.x["b"][4:].flatten(1).any(1).all()


def test_images_of_a_device_go_with_masks_of_the_host():
    """`meta` stands for a GPU: it refuses tensors of the host as well."""
    x, present = torch.rand(8, 1, 8, 8, device="meta"), torch.ones(8, dtype=torch.bool)
    recoloured = Augment(AugmentConfig(gamma=0.1), (Modality("a", 1, (8, 8)),), 0)._recolour(
        x, present, Draws(0, np.arange(8), "augment")
    )
    assert recoloured.device.type == "meta" and recoloured.shape == x.shape


def test_geometry_needs_images_of_the_same_proportions():
    flip = AugmentConfig(flip=(0,))
    for other, complaint in (
        (torch.rand(8, 1, 9), "b with 1 axes in space cannot be moved as a with 2"),
        (torch.rand(8, 3), "b with 0 axes"),
        (torch.rand(8, 1, 8, 10), r"b \[8, 10\] and a \[8, 8\] have other proportions"),
    ):
        with pytest.raises(MandorlaError, match=f"data.augment: {complaint}"):
            augment(flip, batch_of(a=torch.rand(8, 1, 8, 8), b=other))
    signals = batch_of(a=torch.rand(8, 1, 9), b=torch.rand(8, 3))
    with pytest.raises(MandorlaError, match="a with 1 axes in space cannot be moved as a with 1"):
        augment(AugmentConfig(shift=0.1), signals)
    assert augment(AugmentConfig(noise=0.1), signals).x["b"].shape == (8, 3)
    with pytest.raises(MandorlaError, match="data.augment.flip: no axis 2; images here have 0 to 1"):
        augment(AugmentConfig(flip=(2,)), batch_of(a=torch.rand(8, 1, 8, 8)))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    write_scans(root)
    return root


def recipe(run, scans, **strengths):
    return scans_recipe(run, scans, f"data.augment={json.dumps(strengths)}")


def test_resumed_equals_uninterrupted_and_latents_are_of_the_data_as_they_are(tmp_path, scans):
    strengths = WARPS | COLOURS | {"flip": [1]}
    train_vae(recipe(tmp_path / "whole", scans, **strengths))
    with interrupted(5):
        train_vae(recipe(tmp_path / "resumed", scans, **strengths))
    train_vae(recipe(tmp_path / "resumed", scans, **strengths))
    assert same_training(tmp_path / "resumed" / "vae", tmp_path / "whole" / "vae")
    train_vae(recipe(tmp_path / "plain", scans))
    assert not same_training(tmp_path / "plain" / "vae", tmp_path / "whole" / "vae")

    from mandorla.data import follow_record, load_data

    whole = recipe(tmp_path / "whole", scans, **strengths)
    splits = follow_record(tmp_path / "whole", load_data(whole.data, whole.seed))
    vae, _ = stage_1(tmp_path / "whole")
    batch = splits.train.batch(range(8))
    encoded = encode_batch(vae, batch.x, batch.present)
    kept = latents_of(tmp_path / "whole")[0]["train"].batch(np.arange(8))
    torch.testing.assert_close(kept.latents.shared, encoded.latents.shared, rtol=0, atol=1e-5)
