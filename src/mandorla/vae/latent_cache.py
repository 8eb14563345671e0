"""The latents of a run, computed once: what stage 2 trains on. No image is touched again.

    latents/manifest.json              hashes of the stage-1 weights and of the data, shapes, number of samples
    latents/statistics.safetensors     whitening: mean and standard deviation per channel, over the training set
    latents/{train,val}/shared.npy     c, pooled over the modalities present, (N, *shape)
    latents/{train,val}/NAME.npy, NAME.std.npy     mean and standard deviation of q(u | x, c), (N, *shape)
    latents/{train,val}/present.npy    bool (N, M), in the order of the manifest

Arrays are memory-mapped. The folder appears under its name when all of it is written.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from mandorla.data import follow_record, load_data
from mandorla.data.dataset import Dataset, Splits
from mandorla.data.record import accept_data, recorded_fingerprint
from mandorla.errors import MandorlaError
from mandorla.latents import SHARED, Components, Latents, Layout, Shape, Whitening
from mandorla.recipe import read_run
from mandorla.storage import locked, read_json
from mandorla.training import choose_device, load_tensors, save_tensors
from mandorla.vae.model import VAE, pool
from mandorla.vae.store import load_vae

FOLDER, MANIFEST, STATISTICS = "latents", "manifest.json", "statistics.safetensors"
_CHUNK = 512


@dataclass(frozen=True)
class Encoded:
    """Hold B encoded samples: posterior means in `latents`, by modality standard deviations and presence `(B,)`.

    Where a modality is missing its mean and standard deviation are zero.
    """

    latents: Latents
    std: dict[str, Tensor]
    present: dict[str, Tensor]

    def draw(self) -> Components:
        """Draw all components: c as it is, u from its posterior."""
        drawn = {name: mean + self.std[name] * torch.randn_like(mean) for name, mean in self.latents.private.items()}
        return {SHARED: self.latents.shared} | drawn

    @property
    def given(self) -> dict[str, Tensor]:
        """Return which components exist, bool `(B,)`: the shared one where any modality is present."""
        return {SHARED: torch.stack(list(self.present.values())).any(0)} | self.present


@torch.no_grad()
def encode_batch(vae: VAE, x: dict[str, Tensor], present: dict[str, Tensor]) -> Encoded:
    """Encode `x[name]` `(B, C, *size)` in [0, 1]; `present[name]` is bool `(B,)`, each sample needs one modality."""
    features, codes = vae.encode(x, present)
    shared = pool(codes, present)
    mean, std = {}, {}
    for name, rows in present.items():
        mean[name] = shared.new_zeros(len(shared), *vae.layout.shapes[name])
        std[name] = torch.zeros_like(mean[name])
        mu, log_std = vae.posterior(name, features[name], shared[rows])
        mean[name][rows], std[name][rows] = mu, log_std.exp()
    return Encoded(Latents(shared, mean), std, present)


def write_latents(run: Path, splits: Splits | None = None) -> None:
    """Encode the run's whole training and validation set with its stage 1 and write the cache, unless it is there.

    `splits` are the run's data where they are at hand. A cache of other weights or other data is replaced. Raises
    MandorlaError if `run` is not a run folder or its stage 1 is not trained.
    """
    vae, weights = load_vae(run)
    recipe = read_run(run)
    splits = splits or follow_record(run, load_data(recipe.data, recipe.seed))
    accept_data(run, splits)  # first, so that a cache of other data is refused if this is interrupted
    made_from = {"weights": weights, "data": splits.fingerprint}
    if (run / FOLDER / MANIFEST).is_file() and made_from.items() <= _manifest(run).items():
        return
    vae = vae.to(choose_device(recipe.device))
    part = run / f".{FOLDER}.part"
    with locked(run):
        shutil.rmtree(part, ignore_errors=True)
        try:
            for name in ("train", "val"):
                _write_part(vae, getattr(splits, name), part / name, f"latents ({name})")
            cache = {name: LatentPart(part / name, vae.layout) for name in ("train", "val")}
            save_tensors(part / STATISTICS, Whitening.fit(vae.layout, cache["train"].drawn()).tensors())
            manifest = made_from | {
                "shapes": vae.layout.shapes,
                "num": {name: len(latents) for name, latents in cache.items()},
            }
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(run / FOLDER, ignore_errors=True)
            part.rename(run / FOLDER)
        finally:
            shutil.rmtree(part, ignore_errors=True)


class LatentPart:
    """Read the cached latents of one part of the data by index. Raises MandorlaError if a file is damaged."""

    def __init__(self, folder: Path, layout: Layout):
        self.layout = layout
        try:
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _shapes(layout)}
            if len({len(array) for array in self.arrays.values()}) > 1:
                raise ValueError("arrays of different length")
        except (EOFError, OSError, ValueError) as error:
            again = f"delete {folder.parent} and run `mandorla encode {folder.parent.parent}`"
            raise MandorlaError(f"{folder} is damaged ({error}): {again}") from error

    def __len__(self) -> int:
        return len(self.arrays[SHARED])

    def batch(self, indices: np.ndarray) -> Encoded:
        """Return the samples at `indices`, in that order."""
        taken = {name: torch.from_numpy(array[indices]) for name, array in self.arrays.items()}
        names = self.layout.modalities
        return Encoded(
            Latents(taken[SHARED], {name: taken[name] for name in names}),
            {name: taken[f"{name}.std"] for name in names},
            dict(zip(names, taken["present"].unbind(1), strict=True)),
        )

    def drawn(self) -> Iterator[tuple[Components, dict[str, Tensor]]]:
        """Yield every sample once, in chunks: components drawn from their posteriors, and which of them exist."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for start in range(0, len(self), _CHUNK):
                encoded = self.batch(np.arange(start, min(start + _CHUNK, len(self))))
                yield encoded.draw(), encoded.given


def open_latents(run: Path) -> tuple[dict[str, LatentPart], Whitening]:
    """Return the cached parts "train" and "val" of a run and their whitening.

    Raises MandorlaError if there are none, or if they were made by other weights or of other data than the run's.
    """
    vae, weights = load_vae(run)
    if not (run / FOLDER / MANIFEST).is_file():
        raise MandorlaError(f"{run / FOLDER} has no latents: run `mandorla encode {run}`")
    manifest = _manifest(run)
    if manifest["weights"] != weights:
        raise MandorlaError(
            f"{run / FOLDER} was made by other weights than {run / 'vae'} holds: run `mandorla encode {run}`"
        )
    if manifest.get("data") != recorded_fingerprint(run):
        raise MandorlaError(f"{run / FOLDER} was made of other data than the run's: run `mandorla encode {run}`")
    tensors, _ = load_tensors(run / FOLDER / STATISTICS)
    parts = {name: LatentPart(run / FOLDER / name, vae.layout) for name in ("train", "val")}
    return parts, Whitening.of_tensors(tensors)


def _manifest(run: Path) -> dict:
    return read_json(run / FOLDER / MANIFEST, "weights")


def _shapes(layout: Layout) -> dict[str, Shape]:
    """Return what one row of each array holds."""
    stds = {f"{name}.std": layout.shapes[name] for name in layout.modalities}
    return layout.shapes | stds | {"present": (len(layout.modalities),)}


def _write_part(vae: VAE, dataset: Dataset, folder: Path, title: str) -> None:
    folder.mkdir(parents=True)
    device = next(vae.parameters()).device
    count = len(dataset)
    with ExitStack() as stack:
        files = {}
        for name, shape in _shapes(vae.layout).items():
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            kind = np.dtype(bool if name == "present" else np.float32)
            header = {"descr": kind.str, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(files[name], header)
        for start in track(range(0, count, _CHUNK), title):
            batch = dataset.batch(np.arange(start, min(start + _CHUNK, count)))
            x, present = ({n: tensor.to(device) for n, tensor in part.items()} for part in (batch.x, batch.present))
            encoded = encode_batch(vae, x, present)
            rows = encoded.latents.components | {f"{name}.std": std for name, std in encoded.std.items()}
            rows["present"] = torch.stack([present[name] for name in vae.layout.modalities], 1)
            for name, z in rows.items():
                files[name].write(z.cpu().numpy().tobytes())
