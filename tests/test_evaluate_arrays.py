"""The functions that take anybody's arrays: right numbers, whatever holds them, or one clear line."""

import numpy as np
import pytest
import torch

from mandorla.errors import MandorlaError
from mandorla.evaluate import (
    agreement,
    auc,
    chance_agreement,
    critic_information,
    density_coverage,
    dependence,
    edge_overlap,
    fidelity,
    foreground,
    frechet_distance,
    gaussian_information,
    histogram_distance,
    hits,
    kernel_distance,
    mae,
    ms_ssim,
    mutual_information,
    precision_recall,
    probe,
    psnr,
    random_features,
    ranks,
    recall_at,
    signed_rank_p,
    spread_and_error,
    ssim,
)

RNG = np.random.default_rng(0)
CODES, CLASSES, IMAGES = RNG.normal(size=(60, 4)), np.arange(60) % 3, RNG.random((4, 1, 16, 16))
OF_CODES = {  # functions of one set of codes (N, F) beside a good one
    "probe": lambda z: probe("linear", z, CLASSES, CODES),
    "probe, test": lambda z: probe("mlp", CODES, CLASSES, z),
    "ranks": lambda z: ranks(z, CODES),
    "gaussian": lambda z: gaussian_information(z, CODES).nats,
    "critic": lambda z: critic_information(z, CODES, CODES, CODES).nats,
    "critic, new": lambda z: critic_information(CODES, CODES, CODES, z).nats,
    "hits": lambda z: hits(z, np.arange(60) % 4, np.arange(4)),
}
OF_FEATURES = {
    "frechet": lambda z: frechet_distance(CODES, z),
    "kernel": lambda z: kernel_distance(z, CODES),
    "precision": lambda z: precision_recall(CODES, z),
    "density": lambda z: density_coverage(z, CODES),
    "fidelity": lambda z: fidelity(CODES, z),
}
OF_NUMBERS = {
    "auc": lambda z: auc(z, np.arange(60) % 2),
    "recall": lambda z: recall_at(z)[1],
    "p": signed_rank_p,
}
OF_CLASSES = {
    "histogram": lambda z: histogram_distance(z, CLASSES, 3),
    "histogram, second": lambda z: histogram_distance(CLASSES, z, 3),
    "dependence": lambda z: dependence(z, CLASSES, 3, 3),
    "dependence, second": lambda z: dependence(CLASSES, z, 3, 3),
    "chance": lambda z: chance_agreement(z, 2),
    "probe": lambda z: probe("linear", CODES, z, CODES),
    "hits": lambda z: hits(CODES[:, :3], z, CLASSES),
    "auc": lambda z: auc(CODES[:, 0], z),
}
OF_IMAGES = {
    "psnr": lambda x: psnr(x, IMAGES),
    "mae": lambda x: mae(IMAGES, x),
    "ssim": lambda x: ssim(x, IMAGES),
    "ms-ssim": lambda x: ms_ssim(IMAGES, x),
    "information": lambda x: mutual_information(x, IMAGES),
    "edges": lambda x: edge_overlap(IMAGES, x),
    "spread": lambda x: spread_and_error(np.stack([IMAGES, IMAGES[::-1]]), x)["ratio"],
    "foreground": foreground,
    "random": random_features,
}


def spoilt(good: np.ndarray, value: float) -> np.ndarray:
    return np.where(np.arange(good.size).reshape(good.shape) == 3, value, good)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    ("call", "good"),
    [
        *((call, CODES) for call in (OF_CODES | OF_FEATURES).values()),
        *((call, CODES[:, 0]) for call in OF_NUMBERS.values()),
        *((call, IMAGES) for call in OF_IMAGES.values()),
    ],
)
def test_values_that_are_not_finite(call, good, value):
    with pytest.raises(MandorlaError, match="have NaN or infinite values: leave those samples out"):
        call(spoilt(good, value))


@pytest.mark.parametrize("bad", [CODES[:, 0], CODES[:0], CODES[:, :0], np.float64(1), "abc", [[1.0], [2.0, 3.0]]])
@pytest.mark.parametrize("call", [*OF_CODES.values(), *OF_FEATURES.values()])
def test_what_are_no_codes(call, bad):
    with pytest.raises(MandorlaError, match=r"have shape \(.*: expected \(N, F\)|are no real numbers: give an array"):
        call(bad)


@pytest.mark.parametrize("bad", [CODES, CODES[:0, 0]])
@pytest.mark.parametrize("call", OF_NUMBERS.values())
def test_what_are_no_numbers_of_samples(call, bad):
    with pytest.raises(MandorlaError, match=r"expected \(N,\), N at least 1"):
        call(bad)


@pytest.mark.parametrize("bad", [CLASSES / 2, CLASSES[:0], CLASSES[:, None]])
@pytest.mark.parametrize("call", OF_CLASSES.values())
def test_what_are_no_classes(call, bad):
    with pytest.raises(MandorlaError, match=r"expected integers \(N,\), N at least 1"):
        call(bad)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_classes_that_are_not_among_them(wrong):
    for call in (OF_CLASSES["histogram"], OF_CLASSES["histogram, second"], OF_CLASSES["auc"]):
        with pytest.raises(MandorlaError, match=f"labels have a {wrong}, of . classes from 0 on"):
            call(np.where(CLASSES == 0, wrong, CLASSES % 2))


def test_sets_of_unequal_length():
    short = CODES[:40]
    calls = [
        lambda: gaussian_information(CODES, short),
        lambda: critic_information(CODES, short, CODES, CODES),
        lambda: critic_information(CODES, CODES, short, CODES),
        lambda: probe("linear", CODES, CLASSES[:40], CODES),
        lambda: hits(short, CLASSES, np.arange(4)),
        lambda: auc(CODES[:40, 0], CLASSES % 2),
    ]
    for call in calls:
        with pytest.raises(MandorlaError, match="are (60 and 40|40 and 60): give one of each per sample"):
            call()
    for call in (
        lambda: probe("linear", CODES, CLASSES, CODES[:, :3]),
        lambda: critic_information(CODES, CODES, CODES[:, :3], CODES),
        lambda: hits(CODES, CLASSES, CLASSES),
        lambda: ranks(CODES, short),
        lambda: probe("forest", CODES, CLASSES, CODES),
        lambda: density_coverage(CODES, CODES, 0),
        lambda: agreement(CLASSES),
    ):
        with pytest.raises(MandorlaError):
            call()


@pytest.mark.parametrize("call", OF_IMAGES.values())
def test_what_are_no_images(call):
    for bad, text in (
        ((255 * IMAGES).astype(np.uint8), "are uint8: give floats"),
        (IMAGES[:, :0], r"have shape \(4, 0"),
    ):
        with pytest.raises(MandorlaError, match=text):
            call(bad)


@pytest.mark.parametrize("size", [(1,), (1, 1), (8, 1), (1, 1, 1)])
def test_images_of_one_pixel_have_no_random_features(size):
    with pytest.raises(MandorlaError, match="too small for a classifier: two pixels a side at least"):
        random_features(np.zeros((2, 1, *size)))


@pytest.mark.parametrize("size", [(2,), (2, 2), (64, 4), (2, 100), (3, 2, 40)])
def test_long_and_small_images_have_random_features(size):
    found = random_features(RNG.random((2, 1, *size)))
    assert found.shape[0] == 2 and found.isfinite().all() and not torch.equal(found[0], found[1])


def test_only_the_pixels_of_a_mask_that_fits_count():
    mask = IMAGES > 0.5
    mask[1] = False
    scores = psnr(IMAGES[::-1], IMAGES, mask)
    assert np.isnan(scores).tolist() == [False, True, False, False], "no pixels, no likeness: it was 100 dB"
    pair = spread_and_error(np.stack([IMAGES, IMAGES[::-1]]), IMAGES, mask)
    assert all(np.isnan(values).tolist() == [False, True, False, False] for values in pair.values())
    for wrong in (mask[:2], mask[0], mask[..., :8]):
        with pytest.raises(MandorlaError, match="the mask .* does not fit images"):
            psnr(IMAGES, IMAGES, wrong)


@pytest.mark.parametrize("held", [lambda z: torch.tensor(z), lambda z: z.astype(">f8"), lambda z: z[::-1].copy()[::-1]])
def test_it_does_not_matter_what_holds_the_numbers(held):
    cheap = {key: call for key, call in OF_CODES.items() if "critic" not in key}
    for calls, good in (
        (cheap | OF_FEATURES, CODES),
        (OF_NUMBERS, np.abs(CODES[:, 0])),
        (OF_IMAGES, IMAGES),
    ):
        for call in calls.values():
            np.testing.assert_equal(np.asarray(call(held(good))), np.asarray(call(good)))


def test_maps_are_read_as_vectors_and_halves_as_numbers():
    maps = CODES.reshape(60, 1, 2, 2)
    for name in ("probe", "ranks", "gaussian"):
        np.testing.assert_equal(OF_CODES[name](maps), OF_CODES[name](CODES))
    half = torch.tensor(CODES).to(torch.bfloat16)
    for name, call in (OF_CODES | OF_FEATURES).items():
        if "critic" not in name:
            np.testing.assert_equal(call(half), call(half.double()))


def test_a_constant_tells_nothing():
    found = gaussian_information(np.full((60, 4), 0.1), CODES)
    assert found.nats == 0 and found.p == 1, "what its mean leaves of it is rounding"
