"""Runs small enough for tests: a few steps of tiny networks, on one core in about a second per stage."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import mandorla.training
from mandorla.arguments import Arguments
from mandorla.checkpoint import load_tensors
from mandorla.data.dataset import Modality
from mandorla.data.images import decode_image
from mandorla.latent_cache import LatentPart, open_latents
from mandorla.latents import Layout, Whitening
from mandorla.recipe import Recipe, read_recipe, read_run
from mandorla.vae.model import VAE
from mandorla.vae.store import load_vae

_NETWORK = [
    "vae.model.encoder_decoder.channels=[8, 8]",
    "vae.model.encoder_decoder.hidden=16",
    "vae.model.encoder_decoder.apart=false",
]
_REST = [
    "device=cpu",
    "vae.distillation=null",
    "vae.loss.agreement_first=0.3",
    "diffusion.network={width: 16, depth: 1, heads: 2, patch: 2}",
    "diffusion.sampling.steps=3",
    "refiner.network={channels: [8, 8], embedding: 8}",
    "refiner.steps=2",
    *(
        f"{stage}.training.{key}"
        for stage in ("vae", "diffusion", "refiner")
        for key in ("steps=6", "batch_size=16", "checkpoint_every=2", "validate_every=3", "picture_every=6")
    ),
]
_SIZES = [*_NETWORK, *_REST]
POLYDIGITS = ["data.num_train=200", "data.num_val=40", "data.num_test=20", "vae.model.shared.channels=4"]
PHANTOM = [
    "data={kind: phantom, size: [18, 22], num_train: 40, num_val: 10, num_test: 10}",
    "vae.model.shared={channels: 3, stride: 4}",
    "vae.model.private={channels: 2, stride: 8}",
    "vae.model.encoder_decoder.patch=2",
]


def read_image(path: Path) -> np.ndarray:
    """Return an image file as float32 `(C, H, W)` in [0, 1]."""
    pixels = decode_image(path)
    return pixels.astype(np.float32) / (np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1)


def tiny_recipe(run: Path, name: str = "polydigits", *more: str) -> Recipe:
    """Return the shipped recipe `name`, made tiny, changed by `more`."""
    own = {"polydigits": POLYDIGITS, "phantom": PHANTOM}[name]
    return read_recipe(name, [f"run={json.dumps(str(run))}", *own, *_SIZES, *more])


def signals_changes(run: Path, root: Path, *more: str) -> list[str]:
    """Return the changes that make of `polydigits` a recipe for data that it writes into `root`, and `more`.

    These are two unlike signals, one missing at times.
    """
    rng = np.random.default_rng(0)
    np.savez(
        root / "signals.npz",
        a=rng.random((60, 19), np.float32),
        b=rng.random((60, 11, 2), np.float32),
        present=np.arange(60) % 3 > 0,
    )
    images = "{pressure: 'signals.npz:a', flow: 'signals.npz:b'}"
    data = f"data={{kind: arrays, root: {json.dumps(str(root))}, dimensions: 1, images: {images},"
    data += " present: {flow: 'signals.npz:present'}}"
    return [f"run={json.dumps(str(run))}", data, *_SIZES, *more]


def signals_recipe(run: Path, root: Path, *more: str) -> Recipe:
    """Return the recipe of `signals_changes`."""
    return read_recipe("polydigits", signals_changes(run, root, *more))


def tables_recipe(run: Path, root: Path) -> Recipe:
    """Return a recipe for a table that it writes into `root`: two values of blood, three of urine, which some lack."""
    rng = np.random.default_rng(0)
    lines = ["patient,sodium,calcium,ph,protein,glucose"]
    for number, values in enumerate(rng.random((60, 5)) * [5, 0.5, 2, 1, 3] + [138, 2.2, 5, 0, 4]):
        cells = [f"{value:.5g}" for value in values]
        if number % 3 == 2:
            cells[2:] = ["", "", ""]
        lines.append(",".join([f"p{number:02d}", *cells]))
    (root / "all.csv").write_text("\n".join(lines))
    images = "{blood: 'all.csv:sodium,calcium', urine: 'all.csv:ph,protein,glucose'}, groups: 'all.csv:patient'"
    data = f"data={{kind: arrays, root: {json.dumps(str(root))}, images: {images},"
    data += " intensity: {kind: zscore, per: channel}}"
    network = "vae.model.encoder_decoder={kind: perceptron, hidden: [8]}"
    return read_recipe("polydigits", [f"run={json.dumps(str(run))}", data, network, *_REST])


def write_scans(root: Path, brightness: int = 400) -> None:
    """Write paired 16-bit slices of 12 patients into `root`: a disk of a class-wise radius, a lesion seen in `t2`."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16))) - 7.5
    kind = np.arange(60) % 3
    disk = np.hypot(*grid) < 3 + 1.5 * kind[:, None, None]
    lesion = disk & (np.hypot(grid[0] - 1, grid[1]) < 1.5) & (np.arange(60) % 2 > 0)[:, None, None]
    noise = rng.normal(0, 20, (2, 60, 16, 16))
    t1, t2 = (disk * (level + values) for level, values in zip((brightness, 2 * brightness), noise, strict=True))
    np.savez(
        root / "scans.npz",
        t1=t1.astype(np.int16),
        t2=(t2 + 600 * lesion).astype(np.int16),
        patient=np.arange(60) // 5,
        kind=np.array(["small", "middle", "large"])[kind],
        lesion=np.packbits(lesion, axis=-1),
    )


def scans_recipe(run: Path, root: Path, *more: str) -> Recipe:
    """Return a recipe for the data of `write_scans` in `root`."""
    data = f"""data={{kind: arrays, root: {json.dumps(str(root))}, groups: 'scans.npz:patient', size: [8, 8],
        images: {{t1: 'scans.npz:t1', t2: 'scans.npz:t2'}}, intensity: {{kind: percentile}},
        labels: {{kind: 'scans.npz:kind', lesion_mask: 'scans.npz:lesion:bits'}}}}"""
    small = "{num_train: 40, num_test: 10, num_generated: 10, num_translated: 5, num_samples: 2, "
    small += "judge_steps: 3, segmenter_steps: 3, "
    return read_recipe(
        "polydigits", [f"run={json.dumps(str(run))}", data, *_SIZES, f"evaluate={small}label: kind}}", *more]
    )


def arguments_of(modalities: Sequence[Modality]) -> Arguments:
    """Return what checks the arguments of a stand-in for a model of these modalities."""
    return Arguments(tuple(modalities), Layout({m.name: () for m in modalities}), torch.device("cpu"))


def stage_1(run: Path) -> tuple[VAE, str]:
    """Return the trained stage 1 of a run and the hash of its weights."""
    return load_vae(run, read_run(run).vae.model)


def latents_of(run: Path, checked: bool = False) -> tuple[dict[str, LatentPart], Whitening]:
    """Return the latents of a run, by part, and their whitening."""
    vae, weights = stage_1(run)
    return open_latents(run, read_run(run), vae.layout, weights, checked)


@contextmanager
def interrupted(step: int, before: int = 0):
    """Stop a training that begins inside when it asks for the batch of `step`, as Control-C does.

    It is the first one that does so after `before` others.
    """
    asked = 0

    def stop(seed: int, at: int, batch_size: int, num_samples: int) -> np.ndarray:
        nonlocal asked
        asked += at == step
        if asked > before:
            raise KeyboardInterrupt
        return indices(seed, at, batch_size, num_samples)

    indices = mandorla.training.batch_indices
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mandorla.training, "batch_indices", stop)
        yield


def same_training(one: Path, other: Path) -> bool:
    """Return whether two stages are equal bit by bit: training state, best weights, and every line of figures."""
    for name in ("last.safetensors", "weights.safetensors"):
        (a, metadata), (b, others) = (load_tensors(folder / name) for folder in (one, other))
        if metadata != others or list(a) != list(b) or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    return (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
