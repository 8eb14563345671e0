"""Samples out of samples: the work of `mandorla swap`, `vary`, `interpolate` and `inpaint` over a `Mandorla`.

A *source* is an index into the run's test split; an `.npz` with arrays `(N, C, *size)` in [0, 1] of all or some
modalities, or of a run on tables a table with a row per sample; or a folder in which `mandorla.inputs.find_samples`
finds some, read as those of the training were.

Each verb writes a folder, by default one of its name in the run folder, which is replaced: what was made, all of it as
`<verb>.npz`, and `grid.png`, from top to bottom what was given and what was made of it, from left to right the
modalities of one sample after the other. Draws `(num, N, C, *size)` lie in `draw0`, `draw1`, ..., steps of a way in
`step0`, `step1`, .... What is made of files is called like them, volumes are on their grid; all else is numbered, as
`sample` writes its own. Beside each is a note of how it was made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mandorla.data.places import ReadOptions
from mandorla.data.readers import read
from mandorla.data.samples import Slices, read_slices
from mandorla.diffusion.labels import Value
from mandorla.errors import MandorlaError
from mandorla.files import (
    checked_labels,
    refining_of,
    sampling_of,
    to_arrays,
    write_as_read,
    write_generated,
    write_vectors,
)
from mandorla.inputs import Input, find_samples, in_unit, read_input, reading
from mandorla.model import Mandorla, Part
from mandorla.outputs import SYNTHETIC, new_folder, origin, write_note
from mandorla.pictures import grid, tile
from mandorla.rows import Arrays, numbered, read_arrays, read_rows

_SHOWN = 8  # samples in a grid, and twice as many rows


@dataclass(frozen=True)
class _Source:
    """Hold the N samples of a source, `x[name]` `(N, C, *size)` in [0, 1], and the files that they were read from.

    `region` `(N, *size)` is what was marked on the grid of these files. `ids` are those of rows of a table.
    """

    x: Arrays
    files: Sequence[tuple[Input, Slices]] = ()
    region: np.ndarray | None = None
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return _count(self.x)


def swap(model: Mandorla, shared_from: str, private_from: str, out: Path | None) -> Path:
    """Write samples with the shared part of one source and the private parts of another; return their folder."""
    shared, private = _read_both(model, shared_from, private_from)
    made = origin(model.hashes_of_decoding, {"shared_from": shared_from, "private_from": private_from})
    given = {"shared from": shared.x, "private from": private.x}

    def make() -> Arrays:
        return {name: x[None] for name, x in to_arrays(model.swap(shared.x, private.x)).items()}

    return _write(model, out, "swap", private, given, ["joined"], make, made | refining_of(model))


def vary(
    model: Mandorla,
    source: str,
    out: Path | None,
    *,
    strength: float,
    part: Part,
    num: int,
    seed: int,
    labels: Mapping[str, Value] | None = None,
) -> Path:
    """Write `num` variations of each sample, as `Mandorla.vary` draws them; return their folder."""
    asked = checked_labels(model, labels)
    of = _read(model, source)
    settings = {"source": source, "strength": strength, "part": part, "seed": seed, "labels": asked}
    made = origin(model.hashes, settings | sampling_of(model, None))

    def make() -> Arrays:
        return _by_draw(model.vary(of.x, strength, part, seed, num, labels).x, num)

    return _write(model, out, "vary", of, {"given": of.x}, _numbered("draw", num), make, made)


def interpolate(model: Mandorla, first: str, last: str, out: Path | None, *, part: Part, num: int) -> Path:
    """Write `num` steps from one source to another, ends included; return their folder."""
    a, b = _read_both(model, first, last)
    made = origin(model.hashes_of_decoding, {"from": first, "to": last, "part": part, "num": num} | refining_of(model))

    def make() -> Arrays:
        return to_arrays(model.interpolate(a.x, b.x, num, part))

    return _write(model, out, "interpolate", a, {"from": a.x, "to": b.x}, _numbered("step", num), make, made)


def inpaint(
    model: Mandorla,
    source: str,
    region: Path,
    out: Path | None,
    *,
    part: Part,
    num: int,
    seed: int,
    labels: Mapping[str, Value] | None = None,
) -> Path:
    """Write `num` versions of each sample drawn anew in a region, given what lies around it; return their folder.

    `region` is a picture, a volume or an array, above zero where samples are drawn anew: on the grid of the source's
    files if it has some, else of the size of its samples.
    """
    asked = checked_labels(model, labels)
    sizes = {modality.name: modality.size for modality in model.modalities if len(modality.size) > 1}
    if not sizes:
        raise MandorlaError("no modality of this model is an image or a volume: signals and vectors have no regions")
    of = _read(model, source, region)
    where = of.region if of.files else np.repeat(_read_region(model, region, sizes)[None], len(of), 0)
    if not where.any():
        raise MandorlaError(f"{region}: nothing in it is above zero: mark what shall be drawn anew")
    settings = {"source": source, "region": str(region), "part": part, "seed": seed, "labels": asked}
    made = origin(model.hashes, settings | sampling_of(model, None))
    around = {name: x * ~where[:, None] for name, x in of.x.items() if x.shape[2:] == where.shape[1:]}
    given = {"given": of.x, "around the region": around}

    def make() -> Arrays:
        return _by_draw(model.inpaint(of.x, where, part, seed, num, labels).x, num)

    return _write(model, out, "inpaint", of, given, _numbered("draw", num), make, made)


# ------------------------------------------------------------------------------------------------------------ inside


def _read(model: Mandorla, source: str, region: Path | None = None) -> _Source:
    """Return the samples of a source; of one of files, with the `region` that lies on their grid."""
    if not source.isdecimal():
        path = Path(source)
        if path.is_dir():
            return _read_files(model, find_samples(model, path), region)
        if rows := read_rows(model, path, ()):
            rows = rows.take(path, complete=True)
            return _Source(rows.x, ids=rows.ids)
        return _Source(read_arrays(path, model.modalities))
    test = model.data().test
    if len(source) > 18 or int(source) >= len(test):
        shown = source if len(source) <= 20 else f"{source[:9]}...{source[-8:]}"
        raise MandorlaError(f"no sample {shown} in the test split: it has {len(test)}, counted from 0")
    batch = test.batch([int(source)])
    return _Source({name: value.numpy() for name, value in batch.x.items() if batch.present[name][0]})


def _read_files(model: Mandorla, inputs: Sequence[Input], region: Path | None) -> _Source:
    """Return the samples that lie in files, with the `region` on their grid."""
    masks = {} if region is None else {"region": region}
    read = [read_input(model, one.places, masks) for one in inputs]
    files = list(zip(inputs, read, strict=True))
    marked = np.concatenate([each.masks["region"] for each in read]) > 0 if masks else None
    return _Source(in_unit(model, files)[0], files, marked)


def _read_both(model: Mandorla, first: str, second: str) -> tuple[_Source, _Source]:
    """Return the samples of two sources. Raises MandorlaError if they are not as many."""
    a, b = _read(model, first), _read(model, second)
    if len(a) != len(b):
        raise MandorlaError(f"{first} holds {len(a)} samples, {second} holds {len(b)}: give as many")
    return a, b


def _read_region(model: Mandorla, path: Path, sizes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Return the region `(*size)` of a file, for samples without files: read as if it were one of them.

    `sizes` are those of the modalities that are images or volumes. Raises MandorlaError if it has none of these.
    """
    name, config = next(iter(sizes)), reading(model)
    if config.slices:  # of which samples are one, and so is the region
        region = read(str(path), ReadOptions(dimensions=2)).values
    else:
        region = read_slices({name: str(path)}, {}, config).values[name][0]
    region = (region > 0).any(0)
    if region.shape not in sizes.values():
        wanted = " or ".join(" x ".join(map(str, size)) for size in dict.fromkeys(sizes.values()))
        raise MandorlaError(f"{path}: size {' x '.join(map(str, region.shape))}, but samples have {wanted}: resize it")
    return region


def _by_draw(drawn: Mapping[str, Tensor], num: int) -> Arrays:
    """Return `(num, N, C, *size)` of `(N * num, C, *size)`, the draws of one sample after another."""
    return to_arrays({name: x.unflatten(0, (-1, num)).transpose(0, 1) for name, x in drawn.items()})


def _numbered(what: str, num: int) -> list[str]:
    return [f"{what}{k}" for k in range(num)]


def _count(x: Arrays) -> int:
    return len(next(iter(x.values())))


def _write(
    model: Mandorla,
    out: Path | None,
    verb: str,
    source: _Source,
    given: Mapping[str, Arrays],
    titles: Sequence[str],
    make: Callable[[], Arrays],
    note: Mapping[str, object],
) -> Path:
    """Make something of what was `given` and write it, its files called as those of the `source`, and a grid of both.

    `make` gives arrays `(K, N, C, *size)`, K things for each sample, which `titles` names. Of a single one the files
    lie in the folder itself, and the arrays have no axis for it. Returns the folder.
    """
    with new_folder(out or model.run / verb, replace=out is None) as folder:
        arrays, alone = make(), len(titles) == 1
        made = {title: {name: x[k] for name, x in arrays.items()} for k, title in enumerate(titles)}
        np.savez(folder / f"{verb}.npz", **({name: x[0] for name, x in arrays.items()} if alone else arrays))
        write_note(folder / verb, note)
        for title, x in made.items():
            inner, own = (folder, note) if alone else (folder / title, {**note, "which": title})
            if source.files:
                _write_files(inner, x, model, source.files, own)
            else:
                write_generated(inner, x, model, None, 0, own)
                write_vectors(inner, x, model, source.ids or numbered(range(len(source))), own)
        rows = given | dict(list(made.items())[: 2 * _SHOWN])
        names = list(dict.fromkeys(name for x in rows.values() for name in x))
        columns = [(name, index) for index in range(min(_SHOWN, len(source))) for name in names]
        named = {name: model.intensity[name].columns for name in names}
        tiles = [
            [tile(torch.as_tensor(x[n][i]), named[n]) if n in x else None for n, i in columns] for x in rows.values()
        ]
        bands = [len(given)], range(len(names), len(columns), len(names))
        picture = grid(tiles, list(rows), [name for name, _ in columns], bands, SYNTHETIC)
        (folder / "grid.png").write_bytes(picture)
    return out or model.run / verb


def _write_files(
    folder: Path,
    x: Arrays,
    model: Mandorla,
    files: Sequence[tuple[Input, Slices]],
    note: Mapping[str, object],
) -> None:
    """Write what was made of files, a file for each, called like it, with a note."""
    start = 0
    for one, was in files:
        stop = start + _count(was.values)
        for name, values in x.items():
            target = folder / one.target(name, "mean")
            write_as_read(target, values[start:stop], one, was, model.intensity[name])
            write_note(target, {**note, "modality": name, "Sources": [path.name for path in one.places.values()]})
        start = stop
