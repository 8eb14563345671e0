"""Likeness against independent formulas and libraries."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mandorla.errors import MandorlaError
from mandorla.evaluate import random_features, ranks
from mandorla.evaluate.images import (
    calibration,
    edge_overlap,
    foreground,
    has_ssim,
    mae,
    ms_ssim,
    mutual_information,
    psnr,
    spread_and_error,
    ssim,
)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 2, 24, 24, generator=generator)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def test_psnr_is_that_of_skimage(pair):
    images, truth = (z.numpy() for z in pair)
    expected = [peak_signal_noise_ratio(t, i, data_range=1) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)


def test_ssim_is_that_of_skimage_with_gaussian_window(pair):
    """Mirrored borders are of torchmetrics; skimage leaves borders out."""
    images, truth = (np.pad(z[:, 0].double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for z in pair)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(t, i, **options) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(ssim(pair[0][:, :1], pair[1][:, :1]), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16)])
def test_ssim_of_equal_images_is_one_also_for_a_single_sample(size):
    x = torch.rand(1, 1, *size)
    assert ssim(x, x) == pytest.approx([1])


def test_a_constant_offset_is_known_everywhere():
    truth = torch.full((2, 1, 8, 8), 0.5)
    np.testing.assert_allclose(mae(truth + 0.1, truth), 0.1, rtol=1e-5)
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20, rtol=1e-5)


def test_outside_the_mask_nothing_counts():
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 0.5
    images = truth.clone()
    images[..., :4] += 0.1
    images[..., 4:] = 1.0
    np.testing.assert_allclose(mae(images, truth, foreground(truth)), 0.1, rtol=1e-5)
    np.testing.assert_allclose(psnr(images, truth, foreground(truth)), 20, rtol=1e-5)


def test_values_outside_the_range_are_clipped():
    assert mae(torch.full((1, 1, 2, 2), 1.4), torch.ones(1, 1, 2, 2)) == 0
    assert psnr(torch.ones(1, 4), torch.ones(1, 4)) == 100


@pytest.mark.parametrize("size", [(24, 24), (16, 16, 16)])
def test_ssim_inside_a_mask_of_everything_is_that_of_the_image(size):
    images, truth = torch.rand(2, 3, 1, *size, generator=torch.Generator().manual_seed(0))
    whole = torch.ones(3, 1, *size, dtype=torch.bool)
    np.testing.assert_allclose(ssim(images, truth, whole), ssim(images, truth), rtol=1e-4)


def test_ssim_inside_a_mask_ignores_what_is_far_from_it():
    truth = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    images, mask = truth.clone(), torch.zeros(1, 1, 48, 48, dtype=torch.bool)
    images[..., 30:] = 0
    mask[..., :20] = True
    assert ssim(images, truth, mask) == pytest.approx([1], abs=1e-5) and ssim(images, truth) < 0.8


def test_which_images_have_an_ssim():
    assert has_ssim(torch.zeros(1, 1, 11, 20)) and has_ssim(torch.zeros(1, 1, 11, 11, 11))
    assert not has_ssim(torch.zeros(1, 1, 10, 20)) and not has_ssim(torch.zeros(1, 1, 64))


@pytest.mark.parametrize("size", [(11, 11), (24, 30), (44, 44), (99, 99), (20, 20, 20)])
def test_ms_ssim_of_any_size(size):
    """Equal images give one, others less; the order of a pair does not matter."""
    a, b = torch.rand(2, 2, 1, *size, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(ms_ssim(a, a), 1, rtol=1e-5)
    assert (ms_ssim(a, b) < 0.5).all()
    np.testing.assert_allclose(ms_ssim(a, b), ms_ssim(b, a), atol=1e-5)
    np.testing.assert_allclose(ms_ssim(a[1:], b[1:]), ms_ssim(a, b)[1:], atol=1e-5)


def test_ms_ssim_of_large_images_is_that_of_torchmetrics():
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    a = torch.rand(1, 1, 180, 176, generator=torch.Generator().manual_seed(0))
    b = 0.7 * a + 0.1
    expected = float(multiscale_structural_similarity_index_measure(a, b, data_range=1.0))
    assert ms_ssim(a, b) == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("size", [(60, 50), (30, 32, 34), (3000,)])
def test_how_far_a_pair_shows_one_thing(size):
    """Another contrast of the same image tells it entirely, another image not at all; channels may differ."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 8, (2, 3, *size), generator=generator) / 7  # values that lie in a bin of their own
    image, strange = steps[:, :1], steps[:, 1:2]
    inverted = 1 - image.expand(-1, 3, *[-1] * len(size))
    assert mutual_information(image, inverted) == pytest.approx([2, 2])
    assert mutual_information(image, strange) == pytest.approx([1, 1], abs=0.02)
    assert mutual_information(0 * image, 0 * image + 1).tolist() == [1, 1]
    assert edge_overlap(image, inverted) == pytest.approx([1, 1])
    assert edge_overlap(image, strange) == pytest.approx([0, 0], abs=0.1)
    assert edge_overlap(image, 0 * image).tolist() == [0, 0]
    for measure in (mutual_information, edge_overlap):
        assert measure(image, strange) == pytest.approx(measure(strange, image))
        assert measure(image[:0].numpy(), strange[:0]).shape == (0,)
        with pytest.raises(MandorlaError, match="are no pairs: give as many, of one size"):
            measure(image, strange[..., 1:])


def test_mutual_information_is_that_of_scikit_learn():
    from sklearn.metrics import mutual_info_score

    a, b = (torch.randint(0, 4, (1, 1, 20, 20), generator=torch.Generator().manual_seed(k)) for k in range(2))
    b = torch.where(a > 1, a, b)
    h_a, h_b = (mutual_info_score(z.flatten(), z.flatten()) for z in (a, b))
    joint = h_a + h_b - mutual_info_score(a.flatten(), b.flatten())
    assert mutual_information(a / 3, b / 3) == pytest.approx([(h_a + h_b) / joint])


@pytest.mark.parametrize("width", [1.0, 0.5, 2.0])
def test_the_spread_of_samples_beside_their_error(width):
    """Truth and samples are drawn around one mean, each pixel with its own deviation; `width` is a fault of samples."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.4 + 0.2 * torch.rand(4, 1, 64, 64, generator=generator)
    std = 0.01 + 0.05 * torch.rand(4, 1, 64, 64, generator=generator)
    truth = mean + std * torch.randn(mean.shape, generator=generator)
    samples = mean + width * std * torch.randn(9, *mean.shape, generator=generator)
    found = spread_and_error(samples, truth)
    np.testing.assert_allclose(found["ratio"], np.sqrt((1 + 1 / 9) * width**2 / (1 + width**2 / 9)), rtol=0.05)
    assert ((found["coverage"] > 0.75) == (width >= 1)).all() and (found["correlation"] > 0.3).all()
    if width == 1:
        np.testing.assert_allclose(found["coverage"], 8 / 10, atol=0.03)


def test_right_uncertainty_reaches_the_attainable_correlation_and_no_more():
    generator = torch.Generator().manual_seed(0)
    std = 0.01 + 0.05 * torch.rand(4, 1, 64, 64, generator=generator)
    drawn = 0.5 + std * torch.randn(10, *std.shape, generator=generator)
    found, most = (of["correlation"] for of in calibration(drawn[1:], drawn[0]))
    assert most.shape == (4,) and (most > 0.2).all() and (most < 0.8).all()
    np.testing.assert_allclose(found, most, atol=0.04)
    wrong = 0.5 + std.flip(3) * torch.randn(9, *std.shape, generator=generator)
    found, most = (of["correlation"] for of in calibration(wrong, drawn[0]))
    assert (found < most - 0.2).all()
    with pytest.raises(MandorlaError, match="at least 3"):
        calibration(drawn[:2], drawn[0])


def _one_law(kind: str, num: int, generator: torch.Generator) -> torch.Tensor:
    """Return 9 draws for each of `num` samples `(9, num, 1, 24, 24)`, all of one law, one of them the truth."""
    shape = (9, num, 1, 24, 24)
    if kind == "one error for many pixels":
        return (
            (0.5 + 0.1 * torch.randn(*shape[:3], 2, 2, generator=generator))
            .repeat_interleave(12, 3)
            .repeat_interleave(12, 4)
        )
    if kind == "cut off at 0 and 1":
        return (0.5 + torch.randn(shape, generator=generator)).clamp(0, 1)
    place = torch.rand(*shape[:2], 2, generator=generator) * 12 + 6  # of a disc on black
    row, column = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    disc = (row - place[..., :1, None]).square() + (column - place[..., 1:, None]).square() < 16
    return 0.8 * disc.float()[:, :, None]


@pytest.mark.parametrize("kind", ["one error for many pixels", "cut off at 0 and 1", "a disc somewhere"])
@pytest.mark.parametrize("above", [None, 0.05])
def test_right_uncertainty_reaches_its_ceiling_whatever_the_errors_are(kind, above):
    """The ratio would be 1 and the coverage 7 / 9 of errors that are independent and of a foreground known before."""
    drawn = _one_law(kind, 400, torch.Generator().manual_seed(0))
    found, right = calibration(drawn[1:], drawn[0], above)
    for name, values in found.items():
        assert values.mean() == pytest.approx(right[name].mean(), abs=0.04 if name != "ratio" else 0.2), name
    plain = spread_and_error(drawn[1:], drawn[0], None if above is None else drawn[0] > above)
    wrong = {"ratio": 1.0, "coverage": 7 / 9}
    assert any(abs(plain[name].mean() - value) > 0.1 for name, value in wrong.items()) or above is None


def test_samples_without_foreground_have_no_calibration():
    samples, truth = torch.rand(4, 2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    truth[0], samples[:, 1] = 0, 0
    found, right = calibration(samples, truth, 0.05)
    assert [np.isnan(of["coverage"]).tolist() for of in (found, right)] == [[True, False], [False, True]]


def test_spread_outside_the_mask_does_not_count():
    samples, truth = torch.rand(5, 2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    expected = spread_and_error(samples[..., :4], truth[..., :4])
    for name, values in spread_and_error(samples, truth, mask).items():
        np.testing.assert_allclose(values, expected[name])


def test_samples_without_spread_are_surely_wrong():
    found = spread_and_error(torch.full((3, 1, 1, 8, 8), 0.5), torch.rand(1, 1, 8, 8))
    assert found["ratio"] == found["coverage"] == found["correlation"] == 0


MEASURES = [mae, psnr, ssim, ms_ssim, lambda a, b: spread_and_error(np.stack([a, b]), b)["ratio"]]


@pytest.mark.parametrize("measure", MEASURES)
def test_arrays_are_as_good_as_tensors(measure, pair):
    arrays = [z.numpy().astype(np.float64) for z in pair]
    one = measure(arrays[0][:1], arrays[1][:1])
    none = [] if measure in (ssim, ms_ssim) else measure(arrays[0][:0], arrays[1][:0])
    assert len(none) == 0 and one.shape == (1,) and one == pytest.approx(measure(*arrays)[:1])
    assert torch.equal(foreground(arrays[1]), foreground(pair[1]))


@pytest.mark.parametrize("measure", MEASURES[:4])
def test_what_cannot_be_compared_is_one_clear_line(measure, pair):
    images, truth = pair
    with pytest.raises(MandorlaError, match=r"\(3, 2, 24, 24\) and true ones \(1, 2, 24, 24\) differ in shape"):
        measure(images, truth[:1])
    with pytest.raises(MandorlaError, match="images are uint8: give floats in"):
        measure((images * 255).byte(), truth)
    with pytest.raises(MandorlaError, match="true images have NaN"):
        measure(images, truth * np.nan)
    for other in (255 * images, 4 * images - 2):
        with pytest.raises(MandorlaError, match=r"images range from .* to .*: bring them to \[0, 1\]"):
            measure(other, truth)


def test_images_without_structure_and_single_samples_are_refused(pair):
    for measure in (ssim, ms_ssim):
        with pytest.raises(MandorlaError, match="no structural similarity"):
            measure(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
    with pytest.raises(MandorlaError, match="K at least 2"):
        spread_and_error(pair[0][None], pair[1])
    with pytest.raises(MandorlaError, match="images are uint8"):
        random_features((pair[0] * 255).byte())
    with pytest.raises(MandorlaError, match="50 codes of 8 numbers have no partners in 20 of 8"):
        ranks(np.zeros((50, 8)), np.zeros((20, 8)))
