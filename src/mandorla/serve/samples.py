"""The samples that a request names, each by a short text.

| name | sample |
|---|---|
| `test:12` | number 12 of the run's test part |
| `seed:7:3`, `seed:7:3:16` | number 3 of those drawn with seed 7 (in 16 steps; else the recipe's) |
| `seed:7:3:16:2.5:grade=high&age=40` | the same with guidance and labels, as in a link; steps may be empty |
| `upload:TOKEN`, `upload:TOKEN:5` | an uploaded one; of a volume, slice number 5 (else the middle one) |

Uploads live in memory alone, under tokens that cannot be guessed: who was not told one cannot ask for it. The oldest go
when there are too many.
"""

import copy
import math
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from torch import Tensor

from mandorla.data.dataset import Splits
from mandorla.data.images import MOST_BYTES
from mandorla.data.images import SUFFIXES as IMAGES
from mandorla.data.places import NIFTI, SOUNDS, TABLES, suffix
from mandorla.errors import MandorlaError
from mandorla.inputs import read_sample
from mandorla.latents import Latents
from mandorla.model import Mandorla

ACCEPTED = (*NIFTI, *sorted(IMAGES), ".npy", *SOUNDS, *TABLES)  # kinds of files that are one sample each
LARGEST_FILE = 2**26  # bytes of an upload
LARGEST_CONTENT = 2**30  # bytes that it may unpack to
LARGEST_STORE = 2**28  # bytes of all uploads together
MOST_STEPS, MOST_GUIDANCE = 200, 10  # of a question about what is drawn


@dataclass(frozen=True)
class Sample:
    """Hold one sample: its data `x[name]` `(1, C, *size)` in [0, 1], and its latents where it was made of them."""

    x: dict[str, Tensor]
    latents: Latents | None = None


@dataclass(frozen=True)
class Upload:
    """Hold the files of one sample as they came, and what they hold: `x[name]` `(S, C, *size)`, S slices.

    `files[modality]` is the name that the user gave, of which the suffix alone is used, and the bytes.
    """

    files: dict[str, tuple[str, bytes]]
    x: dict[str, np.ndarray]
    numbers: list[int] | None
    note: str

    @property
    def num_bytes(self) -> int:
        """Return how much memory it takes."""
        return sum(len(content) for _, content in self.files.values()) + sum(x.nbytes for x in self.x.values())


class Uploads:
    """Keep uploads by token, those used last, up to a size."""

    def __init__(self, model: Mandorla):
        self.model = model
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = Lock()

    def add(self, modality: str, name: str, content: bytes, token: str | None = None) -> tuple[str, Upload]:
        """Read an uploaded file as `modality`, with the others of the sample `token`; return the new sample's token.

        No path of the user's is opened. Raises MandorlaError for what is no data of this model.
        """
        name = PurePosixPath(name.replace("\\", "/")).name[:100] or "the file"
        if modality not in (known := [m.name for m in self.model.modalities]):
            raise MandorlaError(f"unknown modality {modality[:100]!r}; this model has {', '.join(known)}")
        if suffix(Path(name)) not in ACCEPTED:
            raise MandorlaError(f"{name}: not a kind of file that can be uploaded; these are {', '.join(ACCEPTED)}")
        if len(content) > LARGEST_FILE:
            raise MandorlaError(f"{name}: larger than {LARGEST_FILE // 2**20} MiB, the most that can be uploaded")
        files = (self.get(token).files if token else {}) | {modality: (name, content)}
        x, numbers = self._read(files)
        upload = Upload(files, x, numbers, self.model.strange(x))
        new = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[new] = upload
            while sum(kept.num_bytes for kept in self._kept.values()) > LARGEST_STORE and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return new, upload

    def get(self, token: str) -> Upload:
        """Return what was uploaded under `token`. Raises MandorlaError if it is not, or no longer, there."""
        with self._lock:
            if token not in self._kept:
                raise MandorlaError("this upload is not here, or no longer: upload the file again")
            self._kept.move_to_end(token)
            return self._kept[token]

    def _read(self, files: dict[str, tuple[str, bytes]]) -> tuple[dict[str, np.ndarray], list[int] | None]:
        """Return data and slice numbers, read from a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            names = {}
            for number, (modality, (name, content)) in enumerate(files.items()):
                names[modality] = Path(folder) / f"{number}{suffix(Path(name))}"
                names[modality].write_bytes(content)
            before = MOST_BYTES.set(LARGEST_CONTENT)
            try:
                return read_sample(self.model, names)
            except MandorlaError as error:
                text = str(error)
                for modality, path in names.items():
                    text = text.replace(str(path), files[modality][0])
                raise MandorlaError(text) from error
            finally:
                MOST_BYTES.reset(before)


class Finder:
    """Find the samples that requests name."""

    def __init__(self, model: Mandorla, uploads: Uploads, data: Callable[[], Splits]):
        self.model, self.uploads, self.data = model, uploads, data

    def find(self, text: str) -> Sample:
        """Return the sample of that name. Raises MandorlaError if there is none."""
        kind, *rest = text.split(":")
        if kind == "upload" and len(rest) in (1, 2):
            return self._uploaded(rest[0], _whole(rest[1], text) if len(rest) == 2 else None)
        if kind == "test" and len(rest) == 1:
            test, number = self.data().test, _whole(rest[0], text)
            if number >= len(test):
                raise MandorlaError(f"no sample {number} in the test part: it has {len(test)}, counted from 0")
            batch = test.batch([number])
            return Sample({name: x for name, x in batch.x.items() if batch.present[name][0]})
        if kind == "seed" and 2 <= len(rest) <= 5:
            seed, number = (_whole(part, text) for part in rest[:2])
            steps, guidance, labels = (*rest[2:], "", "", "")[:3]
            steps = _whole(steps, text) if steps else None
            if number < 10**6 and steps in (None, *range(1, MOST_STEPS + 1)):
                model = guided(self.model, _guidance(guidance, text) if guidance else None)
                drawn = model.sample(1, seed, steps, first=number, labels=dict(parse_qsl(labels)) or None)
                return Sample(drawn.x, drawn.latents)
        raise MandorlaError(f"{text[:100]!r} names no sample: write test:0, seed:0:0 or upload:TOKEN")

    def _uploaded(self, token: str, number: int | None) -> Sample:
        upload = self.uploads.get(token)
        count = len(next(iter(upload.x.values())))
        if number is None:
            row = count // 2
        elif upload.numbers is not None and number in upload.numbers:
            row = upload.numbers.index(number)
        else:
            raise MandorlaError(f"the upload has no slice {number} with foreground: choose another one")
        return Sample({name: torch.from_numpy(x[row : row + 1]) for name, x in upload.x.items()})


def name_of(seed: int, number: int, steps: int | None, guidance: float | None, labels: dict[str, str]) -> str:
    """Return the name under which a drawn sample is found again."""
    how = [str(steps or ""), "" if guidance is None else str(guidance), urlencode(labels)]
    return ":".join(["seed", str(seed), str(number), *how]).rstrip(":")


def guided(model: Mandorla, guidance: float | None) -> Mandorla:
    """Return the model with that guidance, for one question alone; itself where none is asked for."""
    if guidance is None:
        return model
    model = copy.copy(model)
    model.sampling = model.sampling.model_copy(update={"guidance": guidance})
    return model


def _guidance(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST_GUIDANCE:
        raise MandorlaError(f"{place[:100]!r} names no sample: {text[:100]!r} is no guidance from 0 to {MOST_GUIDANCE}")
    return number


def _whole(text: str, place: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise MandorlaError(f"{place[:100]!r} names no sample: {text[:100]!r} is no number")
    return int(text)
