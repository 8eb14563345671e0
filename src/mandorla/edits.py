"""Samples out of samples: the work of `mandorla swap`, `vary`, `interpolate` and `inpaint` over a `Mandorla`.

A *source* is an index into the run's test split; an `.npz` with arrays `(N, C, *size)` in [0, 1] of all or some
modalities; or a folder with a file or a sub-folder of files for each of them, read as those of the training were.

Each verb writes a folder, by default one of its name in the run folder, which is replaced: what was made as `sample`
writes its own, all of it as `<verb>.npz`, and `grid.png`, from top to bottom what was given and what was made of it,
from left to right the modalities of one sample after the other. Draws `(num, N, C, *size)` lie in `draw0`, `draw1`,
..., steps of a way in `step0`, `step1`, ...; draw k of sample i depends on (seed, k + i num) alone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.data.readers import ReadOptions, read
from mandorla.errors import MandorlaError
from mandorla.files import refining_of, sampling_of, to_arrays, write_generated
from mandorla.inputs import Arrays, read_arrays, read_folder
from mandorla.model import Mandorla, Part
from mandorla.outputs import new_folder, origin, write_note
from mandorla.pictures import grid

_SHOWN = 8  # samples in a grid


def swap(model: Mandorla, shared_from: str, private_from: str, out: Path | None) -> Path:
    """Write samples with the shared part of one source and the private parts of another; return their folder."""
    shared, private = _read_both(model, shared_from, private_from)
    joined = to_arrays(model.swap(shared_from=shared, private_from=private))
    made = origin(model.hashes_of_decoding, {"shared_from": shared_from, "private_from": private_from})
    given = {"shared from": shared, "private from": private}
    return _write(model, out, "swap", given, {"joined": joined}, made | refining_of(model))


def vary(model: Mandorla, source: str, out: Path | None, *, strength: float, part: Part, num: int, seed: int) -> Path:
    """Write `num` variations of each sample, as `Mandorla.vary` draws them; return their folder."""
    x = _read(model, source)
    drawn = model.vary(_repeated(x, num), strength, part, seed).x
    settings = {"source": source, "strength": strength, "part": part, "seed": seed}
    made = origin(model.hashes, settings | sampling_of(model, None))
    return _write(model, out, "vary", {"given": x}, _named("draw", _by_draw(drawn, num)), made)


def interpolate(model: Mandorla, first: str, last: str, out: Path | None, *, part: Part, num: int) -> Path:
    """Write `num` steps from one source to another, ends included; return their folder."""
    a, b = _read_both(model, first, last)
    way = to_arrays(model.interpolate(a, b, num, part))
    made = origin(model.hashes_of_decoding, {"from": first, "to": last, "part": part, "num": num} | refining_of(model))
    return _write(model, out, "interpolate", {"from": a, "to": b}, _named("step", way), made)


def inpaint(model: Mandorla, source: str, region: Path, out: Path | None, *, part: Part, num: int, seed: int) -> Path:
    """Write `num` versions of each sample drawn anew in a region, given what lies around it; return their folder.

    `region` is a picture, a volume or an array of the size of the samples, above zero where they are drawn anew.
    """
    x, where = _read(model, source), _read_region(model, region)
    drawn = model.inpaint(_repeated(x, num), where, part, seed).x
    settings = {"source": source, "region": region.name, "part": part, "seed": seed}
    made = origin(model.hashes, settings | sampling_of(model, None))
    around = {name: values * ~where for name, values in x.items() if values.shape[2:] == where.shape}
    given = {"given": x, "around the region": around}
    return _write(model, out, "inpaint", given, _named("draw", _by_draw(drawn, num)), made)


# ------------------------------------------------------------------------------------------------------------ inside


def _read(model: Mandorla, source: str) -> Arrays:
    """Return the samples `(N, C, *size)` in [0, 1] of a source, by those modalities that it has."""
    if not source.isdecimal():
        path = Path(source)
        return read_folder(model, path) if path.is_dir() else read_arrays(path, model.modalities)
    test = model.data().test
    if len(source) > 18 or int(source) >= len(test):
        shown = source if len(source) <= 20 else f"{source[:9]}...{source[-8:]}"
        raise MandorlaError(f"no sample {shown} in the test split: it has {len(test)}, counted from 0")
    batch = test.batch([int(source)])
    return {name: value.numpy() for name, value in batch.x.items() if batch.present[name][0]}


def _read_both(model: Mandorla, first: str, second: str) -> tuple[Arrays, Arrays]:
    """Return the samples of two sources. Raises MandorlaError if they are not as many."""
    a, b = _read(model, first), _read(model, second)
    if (left := _count(a)) != (right := _count(b)):
        raise MandorlaError(f"{first} holds {left} samples, {second} holds {right}: give as many")
    return a, b


def _read_region(model: Mandorla, path: Path) -> np.ndarray:
    """Return the region `(*size)` of a file. Raises MandorlaError if it is empty or of no modality's size."""
    sizes = list(dict.fromkeys(modality.size for modality in model.modalities if len(modality.size) > 1))
    if not sizes:
        raise MandorlaError("no modality of this model is an image or a volume: signals and vectors have no regions")
    region = (read(str(path), ReadOptions(dimensions=len(sizes[0]))).values > 0).any(0)
    if region.shape not in sizes:
        wanted = " or ".join(" x ".join(map(str, size)) for size in sizes)
        raise MandorlaError(f"{path}: size {' x '.join(map(str, region.shape))}, but samples have {wanted}: resize it")
    if not region.any():
        raise MandorlaError(f"{path}: nothing in it is above zero: mark what shall be drawn anew")
    return region


def _repeated(x: Arrays, num: int) -> Arrays:
    """Return each sample `num` times, one after another."""
    return {name: values.repeat(num, 0) for name, values in x.items()}


def _by_draw(drawn: Mapping[str, Tensor], num: int) -> Arrays:
    """Return `(num, N, C, *size)` of `(N * num, C, *size)`."""
    return {name: np.moveaxis(x.reshape(-1, num, *x.shape[1:]), 1, 0) for name, x in to_arrays(drawn).items()}


def _named(what: str, made: Arrays) -> dict[str, Arrays]:
    """Return the entries of the first axis under names: `draw0`, `draw1`, ..."""
    return {f"{what}{k}": {name: x[k] for name, x in made.items()} for k in range(_count(made))}


def _count(x: Arrays) -> int:
    return len(next(iter(x.values())))


def _write(
    model: Mandorla,
    out: Path | None,
    verb: str,
    given: Mapping[str, Arrays],
    made: Mapping[str, Arrays],
    note: Mapping[str, object],
) -> Path:
    """Write what was `made` of what was `given`, and a grid of both; return the folder.

    Where only one thing was made, its files lie in the folder itself, and its arrays have no axis for it.
    """
    alone, names = len(made) == 1, list(next(iter(made.values())))
    count = min(_SHOWN, _count(next(iter(made.values()))))
    with new_folder(out or model.run / verb, replace=out is None) as folder:
        arrays = {name: np.stack([x[name] for x in made.values()]) for name in names}
        np.savez(folder / f"{verb}.npz", **({name: x[0] for name, x in arrays.items()} if alone else arrays))
        write_note(folder / verb, note)
        for name, x in made.items():
            write_generated(folder if alone else folder / name, x, model, None, 0, note)
        columns = [(name, index) for index in range(count) for name in names]
        rows = given | made
        tiles = [[torch.as_tensor(x[n][i]) if n in x else None for n, i in columns] for x in rows.values()]
        bands = [len(given)], range(len(names), len(columns), len(names))
        (folder / "grid.png").write_bytes(grid(tiles, list(rows), [name for name, _ in columns], bands))
    return out or model.run / verb
