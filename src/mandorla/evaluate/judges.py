"""Supervised networks, one per modality: the ceiling of every probe and the judges of what a model generates.

A judge is about as large as the model's encoders and sees the same training images, with their labels. What it
scores on real test images is the most that generated images can be expected to score. It has one linear head per
factor, so that class, private factors and lesions are judged by one network; factors that are numbers are gauged by
another one, which would else take from what the first learns of a lesion.
"""

import json
import math
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mandorla.data.dataset import Batch, Dataset, Modality, Splits, evenly
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.arrays import columns
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.evaluate.supervised import train_network
from mandorla.nets.blocks import conv
from mandorla.storage import whole

Heads = dict[str, int]  # factor -> number of classes
Meters = dict[str, int]  # factor -> how many numbers it is
_MISSING = -1
_WIDTH, _GRID = 128, 3  # channels and pixels a side at the last convolution, about
_LEAST = 8  # channels of the first one
_CHUNK = 512  # images that are judged at once
_SEEN = 500  # training samples that say what factors are, and on what scale numbers lie, at most
MOST_NUMBERS = 64  # of a factor that is measured
_FLAT = 2  # dimensions of factors that are numbers, at most: one for the samples, one for several numbers of each


class Meter(nn.Linear):
    """Say numbers `(B, D)` of features `(B, F)`, on the scale of those that it was told of."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, num: int) -> None:
        super().__init__(width, num)
        self.register_buffer("mean", torch.zeros(num))
        self.register_buffer("std", torch.ones(num))

    def learn_scale(self, values: np.ndarray) -> None:
        """Take mean and standard deviation of `values` `(N, D)`, but for samples of which some are NaN or infinite."""
        known = values[np.isfinite(values).all(1)]
        varies = known.max(0) > known.min(0)  # the deviation of equal numbers is not always 0
        self.mean.copy_(torch.as_tensor(known.mean(0)))
        self.std.copy_(torch.as_tensor(np.where(varies, known.std(0), 1.0)))

    def error(self, said: Tensor, values: Tensor, here: Tensor) -> Tensor:
        """Return the squared error of what was `said` `(B, D)`, in standard deviations, summed over where it counts.

        It counts where a sample is `here`, bool `(B,)`, and its `values` `(B, D)` are known.
        """
        target = (values - self.mean) / self.std
        known = here & target.isfinite().all(1)
        return (said - target)[known].square().mean(1).sum()


class Judge(nn.Module):
    """Classify images `(B, C, *size)` of one modality in [0, 1]; return logits `(B, classes)` per factor.

    Of a factor that is numbers, for which there is a meter, return `(B, D)` in standard deviations from the mean.
    """

    def __init__(self, modality: Modality, heads: Heads, meters: Meters | None = None) -> None:
        super().__init__()
        dimensions = len(modality.size)
        if 1 in modality.size:
            raise MandorlaError(f"images {modality.shape} are too small for a classifier: two pixels a side at least")
        depth = max(1, round(math.log2(max(modality.size) / _GRID))) if dimensions else 2
        depth = min([depth, *(side.bit_length() - 1 for side in modality.size)])  # the shortest side is halved as often
        layers: list[nn.Module] = []
        width = modality.channels
        for channels in (max(_LEAST, _WIDTH // 2**level) for level in reversed(range(depth))):
            if dimensions:
                layers += [conv(dimensions, width, channels, 4, stride=2, padding=1), nn.SiLU()]
            else:
                layers += [nn.Linear(width, channels), nn.SiLU()]
            width = channels
        width *= math.prod(max(1, size // 2**depth) for size in modality.size)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.heads = {factor: nn.Linear(width, classes) for factor, classes in heads.items()}
        self.meters = {factor: Meter(width, num) for factor, num in (meters or {}).items()}
        said = [part[factor] for part in (self.heads, self.meters) for factor in sorted(part)]
        self.said = nn.ModuleList(said)  # by place: a module cannot be called as a label may, such as type or age.years

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.body(2 * x - 1)
        return {factor: head(code) for factor, head in [*self.heads.items(), *self.meters.items()]}

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the channels of the last layer before the heads, means over space, `(B, F)`, of images in [0, 1]."""
        self.eval()
        device = next(self.parameters()).device
        layers = self.body[:-2]  # without flattening and dropout
        parts = [layers(2 * part.to(device).clamp(0, 1) - 1).cpu() for part in x.split(_CHUNK)]
        return torch.cat([part.flatten(2).mean(-1) if part.ndim > 2 else part for part in parts])

    @torch.no_grad()
    def probabilities(self, x: Tensor, factor: str) -> np.ndarray:
        """Return class probabilities `(B, classes)` of images in [0, 1]."""
        self.eval()
        device = next(self.parameters()).device
        parts = [self(part.to(device).clamp(0, 1))[factor].float().softmax(-1).cpu() for part in x.split(_CHUNK)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def numbers(self, x: Tensor) -> dict[str, np.ndarray]:
        """Return what images in [0, 1] say of each factor that is numbers, `(B, D)`, on its own scale."""
        self.eval()
        device = next(self.parameters()).device
        parts = [self(part.to(device).clamp(0, 1)) for part in x.split(_CHUNK)]
        return {
            factor: torch.cat([part[factor].float() * meter.std + meter.mean for part in parts]).cpu().numpy()
            for factor, meter in self.meters.items()
        }

    def classes(self, x: Tensor, factor: str) -> np.ndarray:
        """Return the most probable class `(B,)` of images in [0, 1]."""
        return self.probabilities(x, factor).argmax(-1)


def train_judges(
    train: Dataset,
    heads: Mapping[str, Heads],
    steps: int,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    meters: Mapping[str, Meters] | None = None,
) -> dict[str, Judge]:
    """Train one judge for each modality named in `heads` or `meters`, all on the same batches.

    Missing images do not count. As `train_network` does, by the cross-entropy summed over the heads, and the squared
    error over the meters.
    """
    told = _told(train) if meters else {}

    def build() -> nn.ModuleDict:
        judges = nn.ModuleDict(_judges(train.modalities, heads, meters or {}))
        for judge in judges.values():
            for factor, meter in judge.meters.items():
                meter.learn_scale(columns(told[factor]))
        return judges

    def loss(judges: nn.Module, batch: Batch, autocast: torch.autocast) -> Tensor:
        total = torch.zeros((), device=device)
        for name, judge in judges.items():
            with autocast:
                logits = judge(batch.x[name].to(device))
            for factor, scores in logits.items():
                if factor in judge.meters:
                    values = torch.as_tensor(columns(batch.factors[factor]), dtype=torch.float32, device=device)
                    error = judge.meters[factor].error(scores.float(), values, batch.present[name].to(device))
                    total = total + error
                    continue
                labels = torch.as_tensor(batch.factors[factor]).long()
                labels = torch.where(batch.present[name], labels, _MISSING).to(device)
                total = total + nn.functional.cross_entropy(
                    scores.float(), labels, ignore_index=_MISSING, reduction="sum"
                )
        return total / batch_size

    judges = train_network(build, loss, train, steps, batch_size, seed, device)
    return dict(judges.items())


def save_judges(path: Path, judges: Mapping[str, Judge], made_from: Mapping[str, object]) -> None:
    """Write all judges into one safetensors file together with what they were `made_from`."""
    tensors = {f"{name}/{key}": z for name, judge in judges.items() for key, z in judge.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        save_file(
            {key: z.cpu().contiguous() for key, z in tensors.items()},
            part,
            metadata={"made_from": json.dumps(made_from, sort_keys=True)},
        )


def load_judges(
    path: Path,
    modalities: tuple[Modality, ...],
    heads: Mapping[str, Heads],
    made_from: Mapping[str, object],
    meters: Mapping[str, Meters] | None = None,
) -> dict[str, Judge] | None:
    """Read the judges of an earlier evaluation, or return None where there are none made from the same things."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata().get("made_from") != json.dumps(made_from, sort_keys=True):
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        judges = {name: judge.eval() for name, judge in _judges(modalities, heads, meters or {}).items()}
        for name, judge in judges.items():
            judge.load_state_dict({k.split("/", 1)[1]: z for k, z in tensors.items() if k.split("/", 1)[0] == name})
    except (SafetensorError, RuntimeError):  # damaged, or of an earlier version: they are trained anew
        return None
    return judges


def find_judges(
    path: Path, data: Splits, settings: EvaluateConfig, seed: int, device: torch.device | str
) -> dict[str, Judge]:
    """Return judges, on `device`, of all classes that `settings` name and `data` have, none where there are none.

    They are those of an earlier call, kept at `path`, if they were made from the same things, else newly trained ones.
    Raises MandorlaError for a factor that holds numbers instead of classes.
    """
    probe = _some(data.train)
    heads: dict[str, Heads] = {}
    for name in probe.x:
        factors = (settings.label, f"{settings.private_label}_{name}", settings.lesion)
        found = {f: _num_classes(data, probe, f, name) for f in factors if f in probe.factors}
        found = {f: num for f, num in found.items() if num}
        heads |= {name: found} if found else {}
    return _find(path, data, settings, seed, device, heads, {})


def find_gauges(
    path: Path, data: Splits, settings: EvaluateConfig, seed: int, device: torch.device | str
) -> dict[str, Judge]:
    """Return judges of all factors that are numbers, as `find_judges` does of those that are classes.

    A factor called `<this>_<modality>` is that modality's own. Raises MandorlaError for one that `settings` name and
    that is not there, or is no numbers.
    """
    return _find(path, data, settings, seed, device, {}, _meters(_told(data.train), data.modalities, settings))


def _find(
    path: Path,
    data: Splits,
    settings: EvaluateConfig,
    seed: int,
    device: torch.device | str,
    heads: Mapping[str, Heads],
    meters: Mapping[str, Meters],
) -> dict[str, Judge]:
    """Read judges from `path`, or train them and keep them there."""
    if not heads and not meters:
        return {}
    made_from = {"data": data.fingerprint, "seed": seed} | ({"heads": heads} if heads else {"meters": meters})
    factors = {factor for each in [*heads.values(), *meters.values()] for factor in each}
    made_from |= {"labels": _digest_labels(data, factors)}
    made_from |= {"steps": settings.judge_steps, "batch_size": settings.judge_batch_size}
    judges = load_judges(path, data.modalities, heads, made_from, meters)
    if judges is None:
        judges = train_judges(data.train, heads, settings.judge_steps, settings.judge_batch_size, seed, device, meters)
        try:
            save_judges(path, judges, made_from)
        except (OSError, MandorlaError) as error:  # a run folder of somebody else
            warnings.warn(f"the judges cannot be kept for another evaluation ({error})", MandorlaWarning, stacklevel=2)
    return {name: judge.to(device) for name, judge in judges.items()}


def _num_classes(data: Splits, probe: Batch, factor: str, name: str) -> int:
    """Return how many classes a factor has; none if it is known of no training or no test sample with a modality.

    Raises MandorlaError if it is a number.
    """
    if not isinstance(data.train, StoredDataset):
        return int(probe.factors[factor].max()) + 1
    if factor not in data.classes:
        raise MandorlaError(
            f"evaluate.label, private_label or lesion: {factor!r} holds numbers, not classes, which these are of:"
            f" name a label with classes ({', '.join(data.classes) or 'these data have none'}), or leave it out"
        )
    for part in (data.train, data.test):
        if factor in getattr(part, "labels", {}):  # other data than the run's own may lack it
            known = (part.labels[factor][part.rows] >= 0) & part.present[name][part.rows]
            if not known.any():
                return 0
    return len(data.classes[factor])


def _some(train: Dataset) -> Batch:
    """Return training samples enough to see what factors are, of all of them: data may be sorted."""
    return train.batch(evenly(len(train), _SEEN))


def _told(train: Dataset) -> dict[str, np.ndarray]:
    """Return what numbers are told of training samples: of all where that takes no image, else of some."""
    if isinstance(train, StoredDataset):
        return {factor: values[train.rows] for factor, values in train.labels.items() if values.ndim <= _FLAT}
    return _some(train).factors


def _meters(
    told: Mapping[str, np.ndarray], modalities: tuple[Modality, ...], settings: EvaluateConfig
) -> dict[str, Meters]:
    """Return of the factors that are numbers how many they are, for each modality the ones it can be asked for.

    Images that are too small for a network are asked for none.
    """
    names = sorted((m.name for m in modalities), key=len, reverse=True)  # the end of a name may be another's name
    own = {f"{q}_{name}": name for q in settings.quantities or () for name in names}
    spaces = {m.size for m in modalities} - {()}
    numbers = [factor for factor, values in told.items() if values.shape[1:] not in spaces and _is_numbers(values)]
    found: dict[str, str | None] = {}  # whose it is, None for a factor of the whole sample
    for factor in numbers:
        if settings.quantities is None or factor in {*settings.quantities, *own}:
            ends = (name for name in names if factor.endswith(f"_{name}"))
            found[factor] = own.get(factor) or next(ends, None)
    for q in settings.quantities or ():
        if not found.keys() & {q, *(f"{q}_{name}" for name in names)}:
            there = ", ".join(numbers) or "none"
            raise MandorlaError(f"evaluate.quantities: {q!r} is no factor that is numbers; these data have: {there}")
    return {
        m.name: of
        for m in modalities
        if (of := {f: columns(told[f]).shape[1] for f, whose in found.items() if whose in (None, m.name)})
        and 1 not in m.size
    }


def _is_numbers(values: np.ndarray) -> bool:
    """Return whether a factor is a few real numbers a sample, known of some and not all the same."""
    if values.dtype.kind != "f" or values.ndim > _FLAT or values[0].size > MOST_NUMBERS:
        return False
    known = values[np.isfinite(values).reshape(len(values), -1).all(1)]
    return len(known) > 1 and bool((known != known[0]).any())


def _judges(
    modalities: tuple[Modality, ...], heads: Mapping[str, Heads], meters: Mapping[str, Meters]
) -> dict[str, Judge]:
    """Return an untrained judge for each modality that has any factor to be asked for."""
    return {
        m.name: Judge(m, heads.get(m.name, {}), meters.get(m.name, {}))
        for m in modalities
        if m.name in heads or m.name in meters
    }


def _digest_labels(data: Splits, factors: set[str]) -> str:
    """Return a hash of labels that come from files; those that are composed follow from the data's fingerprint."""
    labels = data.train.labels if isinstance(data.train, StoredDataset) else {}
    return sha256(b"".join(labels[factor].tobytes() for factor in sorted(factors & labels.keys()))).hexdigest()
