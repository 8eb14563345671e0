"""Sounds as images: log-mel spectrograms.

With s a waveform in [-1, 1], w a Hann window of sum 1 and h the hop,

    P[f, k] = | 2 sum_n w[n] s[n + k h] exp(-2 pi i f n) |^2,      S[m, k] = 10 log10 sum_f T_m(f) P[f, k]

(a constant is not doubled), so that a steady sine of amplitude 1 is about 0 dB; S ends below at a floor. T_m are
triangles of height 1 that are evenly spaced in mel,

    mel(f) = 2595 log10(1 + f / 700),

each beginning and ending at the centres of its neighbours.

References: Davis, Mermelstein: Comparison of Parametric Representations for Monosyllabic Word Recognition (1980),
https://doi.org/10.1109/TASSP.1980.1163420 (filters); O'Shaughnessy: Speech Communication (1987), p. 150 (scale).
"""

from fractions import Fraction

import numpy as np
from pydantic import Field, model_validator
from scipy.signal import ShortTimeFFT, resample_poly
from scipy.signal.windows import hann

from mandorla.config import Settings
from mandorla.errors import MandorlaError


class SpectrogramConfig(Settings):
    """Say how sounds become images of `num_mel` rows and `frames` columns."""

    rate: int = Field(8000, ge=100)
    """Samples per second; a sound of another rate is resampled."""
    num_mel: int = Field(32, ge=1)
    """Bands of frequency."""
    frames: int = Field(32, ge=1)
    """Points in time; a longer sound is cut at its end, a shorter one filled with silence."""
    hop: int = Field(256, ge=1)
    """Samples between two frames."""
    window: int = Field(512, ge=8)
    """Samples that a frame sees."""
    lowest: float = Field(50.0, ge=0)
    """Lower end of the first band in Hz."""
    highest: float | None = Field(None, gt=0)
    """Upper end of the last band in Hz; null for half the rate."""
    floor: float = Field(-80.0, lt=0)
    """Decibels of whatever is as quiet as that or quieter."""

    @model_validator(mode="after")
    def _bands_fit(self):
        highest = self.highest or self.rate / 2
        if not self.lowest < highest <= self.rate / 2:
            raise ValueError(
                f"bands from {self.lowest:g} to {highest:g} Hz do not fit a rate of {self.rate} per second"
            )
        return self


def log_mel(waveform: np.ndarray, rate: int, settings: SpectrogramConfig) -> np.ndarray:
    """Return the spectrogram of a `waveform` `(..., T)` in [-1, 1] in decibels, float32 `(..., 1, num_mel, frames)`.

    `rate` is in samples per second. Row 0 is the lowest band; column k is about the time k hop. Raises `MandorlaError`
    for values that are not finite and a sound without samples.
    """
    sound = np.asarray(waveform, dtype=np.float64)
    if not sound.shape[-1] or not np.isfinite(sound).all():
        raise MandorlaError("a sound needs samples, none of them NaN or infinite")
    if rate != settings.rate:
        ratio = Fraction(settings.rate, rate)
        sound = resample_poly(sound, ratio.numerator, ratio.denominator, axis=-1)
    length = settings.frames * settings.hop
    fill = [(0, 0)] * (sound.ndim - 1) + [(0, max(0, length - sound.shape[-1]))]
    sound = np.pad(sound[..., :length], fill)
    window = hann(settings.window, sym=False)
    power = ShortTimeFFT(window, settings.hop, settings.rate, fft_mode="onesided2X", scale_to="magnitude")
    mel = mel_filters(settings) @ power.spectrogram(sound, p0=0, p1=settings.frames)
    floor = 10 ** (settings.floor / 10)
    return (10 * np.log10(np.maximum(mel, floor)))[..., None, :, :].astype(np.float32)


def mel_filters(settings: SpectrogramConfig) -> np.ndarray:
    """Return the triangles T `(num_mel, window // 2 + 1)`: how much of every frequency each band takes.

    Raises `MandorlaError` if a band is narrower than the step of the frequencies and takes nothing.
    """
    frequencies = np.fft.rfftfreq(settings.window, 1 / settings.rate)
    ends = [2595 * np.log10(1 + f / 700) for f in (settings.lowest, settings.highest or settings.rate / 2)]
    edges = 700 * (10 ** (np.linspace(*ends, settings.num_mel + 2) / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up, down = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    filters = np.maximum(0, np.minimum(up, down))
    if len(empty := np.flatnonzero(filters.sum(1) == 0)):
        low, high = edges[empty[0]], edges[empty[0] + 2]
        raise MandorlaError(
            f"spectrogram: band {empty[0]}, {low:.0f} to {high:.0f} Hz, lies between two frequencies of a window of "
            f"{settings.window} samples; make the window longer or num_mel smaller"
        )
    return filters
