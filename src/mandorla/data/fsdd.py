"""The Free Spoken Digit Dataset: six speakers say each digit fifty times.

Read from `fsdd/recordings/DIGIT_SPEAKER_TAKE.wav`, as published, or from `fsdd/fsdd.npz`, which holds them all: `x`
int16 `(N, T)`, `digit`, `speaker` and `take` `(N,)`. Takes 0 to 4 are the test set of the authors, 5 to 9 are for
validation.

Reference: Jackson et al.: Free Spoken Digit Dataset (2018), https://doi.org/10.5281/zenodo.1342401.
"""

import re
import struct
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from mandorla.data.arrays import load_array
from mandorla.data.root import RootedConfig
from mandorla.errors import MandorlaError

NPZ, RECORDINGS = "fsdd/fsdd.npz", "fsdd/recordings"
SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset, whose folder recordings may lie there in its stead"
TEST_TAKES, VAL_TAKES = range(5), range(5, 10)
RATE = 8000  # samples per second
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<take>\d+)")


def load_fsdd(config: RootedConfig) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for train, val and test the sounds, int16 `(N, T)`, zeros after their ends, digits and speakers `(N,)`.

    Raises `MandorlaError` if the files are missing, damaged or hold something else.
    """
    folder = config.locate(RECORDINGS)
    if folder.is_dir() and not config.locate(NPZ).is_file():
        sounds, digits, speakers, takes = _read_recordings(folder)
    else:
        path = config.find(NPZ, SOURCE)
        sounds, digits, speakers, takes = (load_array(path, key) for key in ("x", "digit", "speaker", "take"))
        if (sounds.dtype, sounds.ndim) != (np.int16, 2) or not len(sounds) == len(digits) == len(speakers) == len(
            takes
        ):
            raise MandorlaError(f"{path}: {len(digits)} digits of {sounds.dtype} sounds {sounds.shape}; fetch it anew")
    rows = {"test": np.isin(takes, TEST_TAKES), "val": np.isin(takes, VAL_TAKES)}
    rows["train"] = ~(rows["test"] | rows["val"])
    return {part: (sounds[r], digits[r].astype(np.int64), speakers[r].astype(np.int64)) for part, r in rows.items()}


def _read_recordings(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sounds `(N, T)`, digits, speakers (numbered by alphabet) and takes `(N,)`."""
    names = {path: NAME.fullmatch(path.stem) for path in sorted(folder.glob("*.wav"))}
    if wrong := next((path for path, match in names.items() if not match), None if names else folder):
        raise MandorlaError(f"{wrong}: expected files called DIGIT_SPEAKER_TAKE.wav; it comes from {SOURCE}")
    waves = [_read_wave(path) for path in names]
    sounds = np.zeros((len(waves), max(map(len, waves))), np.int16)
    for sound, wave in zip(sounds, waves, strict=True):
        sound[: len(wave)] = wave
    digits, takes = (np.array([int(match[key]) for match in names.values()]) for key in ("digit", "take"))
    _, speakers = np.unique([match["speaker"] for match in names.values()], return_inverse=True)
    return sounds, digits, speakers, takes


def _read_wave(path: Path) -> np.ndarray:
    try:
        rate, wave = wavfile.read(path)
    except (OSError, ValueError, EOFError, struct.error) as error:
        raise MandorlaError(f"{path}: cannot be read as a WAV file ({error}); fetch it anew") from error
    if (rate, wave.dtype, wave.ndim) != (RATE, np.int16, 1) or not len(wave):
        raise MandorlaError(f"{path}: expected {RATE} samples of 16 bits per second on one channel; fetch it anew")
    return wave
