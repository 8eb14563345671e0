import numpy as np
import pytest
from pydantic import ValidationError
from scipy.signal.windows import hann

from mandorla.data.spectrogram import SpectrogramConfig, log_mel, mel_filters
from mandorla.errors import MandorlaError

SETTINGS = SpectrogramConfig()


def tone(frequency: float, rate: int = 8000, seconds: float = 1.0, amplitude: float = 1.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def centres(settings: SpectrogramConfig) -> np.ndarray:
    """Return the centre of every band in Hz, by the inverse of the mel scale, one band after the other."""
    mel = [2595 * np.log10(1 + f / 700) for f in (settings.lowest, settings.highest or settings.rate / 2)]
    step = (mel[1] - mel[0]) / (settings.num_mel + 1)
    return np.array([700 * (10 ** ((mel[0] + step * (band + 1)) / 2595) - 1) for band in range(settings.num_mel)])


def test_a_tone_sounds_in_its_band_at_its_level():
    for band in (5, 12, 30):
        for amplitude in (1.0, 0.01):
            image = log_mel(tone(centres(SETTINGS)[band], amplitude=amplitude), 8000, SETTINGS)
            assert image.shape == (1, 32, 32)
            assert image.dtype == np.float32
            steady = image[0, :, 2:30]
            assert (steady.argmax(0) == band).all()
            assert abs(steady[band].mean() - 20 * np.log10(amplitude)) < 2.5
            assert np.ptp(steady[band]) < 1


def test_formula():
    """One frame by the sums of the docstring."""
    rng = np.random.default_rng(0)
    sound = rng.uniform(-1, 1, 8192)
    window = hann(512, sym=False) / hann(512, sym=False).sum()
    around = sound[7 * 256 - 256 : 7 * 256 + 256]
    spectrum = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512) @ (window * around)
    doubled = np.where(np.isin(np.arange(257), (0, 256)), 1, 2)  # zero and half the rate have no mirror image
    power = np.abs(doubled * spectrum) ** 2
    expected = 10 * np.log10(mel_filters(SETTINGS) @ power)
    np.testing.assert_allclose(log_mel(sound, 8000, SETTINGS)[0, :, 7], expected, atol=1e-3)


def test_filters_overlap_and_sum_to_one_between_their_first_and_last_centre():
    filters, middles = mel_filters(SETTINGS), centres(SETTINGS)
    frequencies = np.arange(257) * 8000 / 512
    inside = (frequencies >= middles[0]) & (frequencies <= middles[-1])
    np.testing.assert_allclose(filters.sum(0)[inside], 1)
    assert (filters[:, frequencies < 50] == 0).all()


def test_time_and_length():
    click = np.zeros(20_000)
    click[10 * 256] = 1
    assert log_mel(click, 8000, SETTINGS)[0].mean(0).argmax() == 10
    for length in (1, 100, 8191, 20_000):
        assert log_mel(click[:length], 8000, SETTINGS).shape == (1, 32, 32)
    np.testing.assert_array_equal(log_mel(click[:8192], 8000, SETTINGS), log_mel(click, 8000, SETTINGS))
    silence = log_mel(np.zeros(9), 8000, SETTINGS)
    assert (silence == -80).all()


def test_a_batch_is_every_sound_on_its_own():
    sounds = np.random.default_rng(1).normal(0, 0.1, (3, 2, 5000))
    images = log_mel(sounds, 8000, SETTINGS)
    assert images.shape == (3, 2, 1, 32, 32)
    np.testing.assert_array_equal(images[2, 1], log_mel(sounds[2, 1], 8000, SETTINGS))


@pytest.mark.parametrize("rate", [16_000, 44_100, 6_000])
def test_another_rate_is_the_same_sound(rate):
    ours, theirs = log_mel(tone(700), 8000, SETTINGS)[0], log_mel(tone(700, rate), rate, SETTINGS)[0]
    assert (ours.argmax(0) == theirs.argmax(0))[2:30].all()
    np.testing.assert_allclose(ours.max(0)[2:30], theirs.max(0)[2:30], atol=0.2)


def test_mistakes():
    for bad in (np.zeros(0), np.array([0.0, np.nan])):
        with pytest.raises(MandorlaError, match="a sound needs samples, none of them NaN"):
            log_mel(bad, 8000, SETTINGS)
    with pytest.raises(MandorlaError, match="band 2, 138 to 237 Hz, lies between two frequencies of a window of 64"):
        log_mel(tone(700), 8000, SpectrogramConfig(window=64))
    with pytest.raises(ValidationError, match="bands from 50 to 5000 Hz do not fit a rate of 8000"):
        SpectrogramConfig(highest=5000.0)
