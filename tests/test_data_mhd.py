import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.io import wavfile

from mandorla.data import load_data
from mandorla.data.mhd import MhdConfig
from mandorla.data.spectrogram import SpectrogramConfig, log_mel
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe
from mandorla.vae.model import VAE

SHARED_DATA = Path(os.environ.get("MANDORLA_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(
    not all((SHARED_DATA / name / f"{name}.npz").exists() for name in ("mnist", "fsdd", "pendigits")),
    reason="no mnist, fsdd and pendigits under MANDORLA_DATA",
)
SPEAKERS = ("ada", "bob", "cyd")


def write_sets(root: Path, packed: bool) -> None:
    """Write small sets of noise into `root`, in which 12 takes of 3 speakers say each digit: packed or as published."""
    rng = np.random.default_rng(0)
    for folder in ("mnist", "fsdd/recordings", "pendigits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    digits = {"train": np.arange(1200) % 10, "test": np.arange(60) % 10}
    images = {f"x_{part}": rng.integers(0, 256, (len(y), 28, 28), np.uint8) for part, y in digits.items()}
    np.savez(root / "mnist" / "mnist.npz", **images, **{f"y_{part}": y.astype(np.uint8) for part, y in digits.items()})
    digits = {"train": np.arange(300) % 10, "test": np.arange(70) % 10}
    points = {part: rng.integers(0, 101, (len(y), 8, 2), np.uint8) for part, y in digits.items()}
    names = [(d, s, t) for d in range(10) for s in range(3) for t in range(12)]
    names.sort(key=lambda name: f"{name[0]}_{SPEAKERS[name[1]]}_{name[2]}.wav")  # as a folder lists them
    waves = [rng.integers(-(2**15), 2**15, rng.integers(3000, 9000), np.int16) for _ in names]
    if packed:
        sounds = np.stack([np.pad(wave, (0, max(map(len, waves)) - len(wave))) for wave in waves])
        known = dict(zip(("digit", "speaker", "take"), np.array(names, np.uint8).T, strict=True))
        np.savez(root / "fsdd" / "fsdd.npz", x=sounds, **known)
        arrays = {f"x_{part}": x for part, x in points.items()} | {f"y_{part}": y for part, y in digits.items()}
        np.savez(root / "pendigits" / "pendigits.npz", **arrays)
        return
    for (digit, speaker, take), wave in zip(names, waves, strict=True):
        wavfile.write(root / "fsdd" / "recordings" / f"{digit}_{SPEAKERS[speaker]}_{take}.wav", 8000, wave)
    for part, suffix in (("train", "tra"), ("test", "tes")):
        rows = np.column_stack([points[part].reshape(-1, 16), digits[part]])
        np.savetxt(root / "pendigits" / f"pendigits.{suffix}", rows, fmt="%3d", delimiter=",")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_sets(root, packed=True)
    return root


def config(root: Path) -> MhdConfig:
    return MhdConfig(root=str(root), num_train=2000, num_val=300, num_test=300)


@pytest.fixture(scope="module")
def splits(root):
    return load_data(config(root), seed=0)


def test_contract(splits):
    shapes = {"image": (1, 28, 28), "sound": (1, 32, 32), "trajectory": (2, 8)}
    assert {m.name: m.shape for m in splits.modalities} == shapes
    assert [len(part) for part in splits.parts.values()] == [2000, 300, 300]
    batch = splits.train.batch(range(2000))
    for name, x in batch.x.items():
        assert x.shape == (2000, *shapes[name])
        assert x.dtype == torch.float32
        assert x.min() >= 0 and 0.8 < x.max() <= 1
        assert batch.present[name].all()
    few = splits.train.batch([1999, 3])
    assert all(torch.equal(x, batch.x[name][[1999, 3]]) for name, x in few.x.items())


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_sample_is_made_of_instances_of_its_digit_and_part(root, splits, part):
    """Look every instance up in the files, in their order."""
    batch = splits.parts[part].batch(range(100))
    digit = batch.factors["digit"]
    mnist, fsdd, pen = (np.load(root / name / f"{name}.npz") for name in ("mnist", "fsdd", "pendigits"))

    given = "test" if part == "test" else "train"
    row = batch.factors["instance_image"] + (1100 if part == "val" else 0)
    np.testing.assert_array_equal(mnist[f"y_{given}"][row], digit)
    np.testing.assert_allclose(batch.x["image"][:, 0], mnist[f"x_{given}"][row] / 255, atol=1e-7)

    row = batch.factors["instance_trajectory"] + (270 if part == "val" else 0)
    np.testing.assert_array_equal(pen[f"y_{given}"][row], digit)
    np.testing.assert_allclose(batch.x["trajectory"].mT, pen[f"x_{given}"][row] / 100, atol=1e-7)

    takes = {"test": range(5), "val": range(5, 10), "train": range(10, 12)}[part]
    row = np.flatnonzero(np.isin(fsdd["take"], takes))[batch.factors["instance_sound"]]
    np.testing.assert_array_equal(fsdd["digit"][row], digit)
    np.testing.assert_array_equal(fsdd["speaker"][row], batch.factors["speaker_sound"])
    decibels = log_mel(fsdd["x"][row[0]] / 2**15, 8000, SpectrogramConfig())
    np.testing.assert_allclose(batch.x["sound"][0], np.clip(1 + decibels / 80, 0, 1), atol=1e-6)


def test_modalities_share_the_digit_alone(splits):
    factors = splits.train.batch(range(2000)).factors
    assert stats.chisquare(np.bincount(factors["digit"], minlength=10)).pvalue > 1e-3
    for one, other in (("speaker_sound", "digit"), ("instance_image", "speaker_sound")):
        table = stats.contingency.crosstab(factors[one] % 7, factors[other]).count
        assert stats.chi2_contingency(table).pvalue > 1e-3
    # among sounds of one digit and drawings of the same one, neither tells of the other
    here = factors["digit"] == 3
    ranks = stats.spearmanr(factors["instance_sound"][here], factors["instance_trajectory"][here])
    assert ranks.pvalue > 1e-3


def test_published_files_are_the_same_data(splits, tmp_path):
    write_sets(tmp_path, packed=False)
    published = load_data(config(tmp_path), seed=0)
    assert published.fingerprint == splits.fingerprint
    ours, theirs = splits.test.batch(range(50)), published.test.batch(range(50))
    assert all(torch.equal(x, theirs.x[name]) for name, x in ours.x.items())


def test_seed_changes_training_alone(root, splits):
    other = load_data(config(root), seed=1)
    assert torch.equal(splits.val.batch(range(9)).x["sound"], other.val.batch(range(9)).x["sound"])
    assert not torch.equal(splits.train.batch(range(9)).x["sound"], other.train.batch(range(9)).x["sound"])


@pytest.mark.parametrize(
    "name, source",
    [
        ("mnist/mnist.npz", "storage.googleapis"),
        ("fsdd/fsdd.npz", "Jakobovski"),
        ("pendigits/pendigits.npz", "doi.org/10.24432"),
    ],
)
def test_each_missing_file_is_named_with_its_source(tmp_path, name, source):
    write_sets(tmp_path, packed=True)
    (tmp_path / name).unlink()
    (tmp_path / "fsdd" / "recordings").rmdir()
    with pytest.raises(MandorlaError, match=f"{name}: no such file; it comes from .*{source}"):
        load_data(config(tmp_path), seed=0)


def test_damaged_files(tmp_path):
    write_sets(tmp_path, packed=False)

    def complaint() -> str:
        with pytest.raises(MandorlaError) as caught:
            load_data(config(tmp_path), seed=0)
        return str(caught.value)

    wave = tmp_path / "fsdd" / "recordings" / "3_bob_4.wav"
    content = wave.read_bytes()
    wave.write_bytes(b"RIFF")
    assert "3_bob_4.wav: cannot be read as a WAV file" in complaint()
    wavfile.write(wave, 16_000, np.zeros(9, np.int16))
    assert "3_bob_4.wav: expected 8000 samples of 16 bits" in complaint()
    wave.rename(wave.with_name("three.wav"))
    assert "three.wav: expected files called DIGIT_SPEAKER_TAKE.wav" in complaint()
    wave.with_name("three.wav").unlink()
    wave.write_bytes(content)
    text = tmp_path / "pendigits" / "pendigits.tes"
    lines = text.read_text().splitlines()
    text.write_text("\n".join(line[:-4] for line in lines))
    assert "pendigits.tes: expected 17 numbers per line" in complaint()
    text.write_text("x, y\n")
    assert "pendigits.tes: cannot be read as numbers" in complaint()
    text.write_text("\n".join([lines[0].replace(lines[0][:3], "101"), *lines[1:]]))
    assert "test points do not lie between 0 and 100" in complaint()
    text.write_text("\n".join(line for line in lines if not line.endswith("7")))
    assert "not every digit 0 to 9 has a trajectory for test" in complaint()


def test_recipe_has_a_network_for_each_kind(splits):
    vae = VAE(read_recipe("mhd").vae.model, splits.modalities)
    batch = splits.train.batch(range(8))
    features, codes = vae.encode(batch.x, batch.present)
    for name, x in batch.x.items():
        u, _ = vae.posterior(name, features[name], codes[name])
        assert vae.decode(name, codes[name], u).shape == x.shape


@needs_data
def test_official_sets():
    splits = load_data(config(SHARED_DATA), seed=0)
    sizes = {part: {name: len(kind.values) for name, kind in data.kinds.items()} for part, data in splits.parts.items()}
    assert sizes["train"] == {"image": 55_000, "sound": 2_400, "trajectory": 6_745}
    assert sizes["val"] == {"image": 5_000, "sound": 300, "trajectory": 749}
    assert sizes["test"] == {"image": 10_000, "sound": 300, "trajectory": 3_498}
