"""Supervised classifiers, one per modality: the ceiling of every probe and the judges of what a model generates.

A judge is about as large as the model's encoders and sees the same training images, with their labels. What it
scores on real test images is the most that generated images can be expected to score. It has one linear head per
factor, so that class, private factors and lesions are judged by one network.
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

from mandorla.data.dataset import Batch, Dataset, Modality, Splits
from mandorla.data.stored import StoredDataset
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.evaluate.settings import EvaluateConfig
from mandorla.evaluate.supervised import train_network
from mandorla.nets.blocks import conv
from mandorla.storage import whole

Heads = dict[str, int]  # factor -> number of classes
_MISSING = -1
_WIDTH, _GRID = 128, 3  # channels and pixels a side at the last convolution, about
_LEAST = 8  # channels of the first one
_CHUNK = 512  # images that are judged at once


class Judge(nn.Module):
    """Classify images `(B, C, *size)` of one modality in [0, 1]; return logits `(B, classes)` per factor."""

    def __init__(self, modality: Modality, heads: Heads) -> None:
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
        self.heads = nn.ModuleDict({factor: nn.Linear(width, classes) for factor, classes in heads.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.body(2 * x - 1)
        return {factor: head(code) for factor, head in self.heads.items()}

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
) -> dict[str, Judge]:
    """Train one judge for each modality named in `heads`, all on the same batches; missing images do not count.

    As `train_network` does, by the cross-entropy summed over the heads.
    """
    modalities = {modality.name: modality for modality in train.modalities}

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({name: Judge(modalities[name], factors) for name, factors in heads.items()})

    def loss(judges: nn.Module, batch: Batch, autocast: torch.autocast) -> Tensor:
        total = torch.zeros((), device=device)
        for name, judge in judges.items():
            with autocast:
                logits = judge(batch.x[name].to(device))
            for factor, scores in logits.items():
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
    path: Path, modalities: tuple[Modality, ...], heads: Mapping[str, Heads], made_from: Mapping[str, object]
) -> dict[str, Judge] | None:
    """Read the judges of an earlier evaluation, or return None where there are none made from the same things."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata().get("made_from") != json.dumps(made_from, sort_keys=True):
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        judges = {m.name: Judge(m, heads[m.name]).eval() for m in modalities if m.name in heads}
        for name, judge in judges.items():
            judge.load_state_dict({k.split("/", 1)[1]: z for k, z in tensors.items() if k.split("/", 1)[0] == name})
    except (SafetensorError, RuntimeError):  # damaged, or of an earlier version: they are trained anew
        return None
    return judges


def find_judges(
    path: Path, data: Splits, settings: EvaluateConfig, seed: int, device: torch.device | str
) -> dict[str, Judge]:
    """Return judges, on `device`, of all factors that `settings` name and `data` have, none where there are none.

    They are those of an earlier call, kept at `path`, if they were made from the same things, else newly trained ones.
    Raises MandorlaError for a factor that holds numbers instead of classes.
    """
    probe = data.train.batch(np.arange(min(len(data.train), 500)))
    heads: dict[str, Heads] = {}
    for name in probe.x:
        factors = (settings.label, f"{settings.private_label}_{name}", settings.lesion)
        found = {f: _num_classes(data, probe, f, name) for f in factors if f in probe.factors}
        found = {f: num for f, num in found.items() if num}
        heads |= {name: found} if found else {}
    if not heads:
        return {}
    made_from = {"data": data.fingerprint, "seed": seed, "heads": heads}
    made_from |= {"labels": _digest_labels(data, {factor for of in heads.values() for factor in of})}
    made_from |= {"steps": settings.judge_steps, "batch_size": settings.judge_batch_size}
    judges = load_judges(path, data.modalities, heads, made_from)
    if judges is None:
        judges = train_judges(data.train, heads, settings.judge_steps, settings.judge_batch_size, seed, device)
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
            f"evaluate.label, private_label or lesion: {factor!r} holds numbers, not classes, which alone are measured:"
            f" name a label with classes ({', '.join(data.classes) or 'these data have none'}), or leave it out"
        )
    for part in (data.train, data.test):
        if factor in getattr(part, "labels", {}):  # other data than the run's own may lack it
            known = (part.labels[factor][part.rows] >= 0) & part.present[name][part.rows]
            if not known.any():
                return 0
    return len(data.classes[factor])


def _digest_labels(data: Splits, factors: set[str]) -> str:
    """Return a hash of labels that come from files; those that are composed follow from the data's fingerprint."""
    labels = data.train.labels if isinstance(data.train, StoredDataset) else {}
    return sha256(b"".join(labels[factor].tobytes() for factor in sorted(factors & labels.keys()))).hexdigest()
