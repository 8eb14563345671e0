"""What a folder seems to be: which source, and how its files pair.

A guess is a `data` block as one would write it. Rules look at names alone, from the particular to the general; the
first whose guess pairs files counts. It is always said aloud, for the user knows better.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from mandorla.data import pair_files, read_config
from mandorla.data.find import find
from mandorla.data.images import SUFFIXES as IMAGES
from mandorla.data.images import decode_image
from mandorla.data.pairing import in_order, is_mask, to_modality, to_part, to_values
from mandorla.data.places import stem, suffix
from mandorla.data.splits import PARTS
from mandorla.data.table import SPLIT, holds_places, read_table, to_label_name
from mandorla.errors import MandorlaError

MOST_MODALITIES = 12
KNOWN = 0.8  # share of the files whose names must tell a modality
ENOUGH_SUBJECTS = 10  # so many different beginnings of names are taken for subjects
SUBJECTS = ("subject", "subject_id", "patient", "patient_id", "participant_id", "case", "id")  # columns of a table
TABLES = (".csv", ".tsv")
CASES = "dataset.json"
_SAID = ("msd", "bids", "table", "arrays")  # what says itself how it pairs: if it does so wrongly, that is to be told
_IN_THE_WAY = 1e-3
_SEPARATOR = "[_/ -]"
_TOKEN = "[^_/ -]+"


class Guess(NamedTuple):
    """Hold a `data` block and what led to it, in words."""

    data: dict[str, Any]
    why: str


def guess(source: Path, changed: bool = False) -> Guess:
    """Return the data block for a folder, a table (.csv, .tsv) or a `dataset.json`.

    It must pair something, unless it is `changed` by settings that the user gives beside it.
    Raises `MandorlaError` if it holds nothing that can be read, or nothing that it seems to be.
    """
    if source.is_dir():
        paths = find(source)
        if not paths:
            raise MandorlaError(f"{source}: holds no file that can be read; give a folder of data, or a recipe")
        candidates = list(_candidates(source, [path.relative_to(source) for path in paths]))
        what = f"{len(paths)} file(s), such as {paths[0].relative_to(source)}, but nothing says which are one sample"
    else:
        rules = (_cases,) if source.name.endswith(".json") else (_table, _columns)
        candidates = [found for rule in rules for found in rule(source.parent, [Path(source.name)])]
        what = "neither a list of files by sample nor columns of numbers whose names begin with that of a modality"
    shares = [_share_paired(candidate) for candidate in candidates]
    if candidates and (changed or max(shares)):
        return candidates[shares.index(max(shares))]
    tried = "; ".join(dict.fromkeys(candidate.why for candidate in candidates))
    what += f" (tried: {tried}); set what pairs them, data.key, behind it, or" if tried else ";"
    raise MandorlaError(f"{source}: {what} write a recipe with a `data` block (see data/README.md) and check that")


def _share_paired(candidate: Guess) -> float:
    """Return which share of the modalities of a guess the fullest sample has; 0 where none has two.

    Where files stand in each other's way it is next to nothing: that is to be told, if there is nothing better.
    """
    if candidate.data["kind"] in _SAID:
        return 1
    try:
        config = read_config(candidate.data)
        files = pair_files(config.model_copy(update={"unpaired": "keep", "unpairable": "skip"})).files
    except ValidationError:
        return 0
    except MandorlaError:
        return _IN_THE_WAY
    most = max(len(files) - places.count(None) for places in zip(*files.values(), strict=True))
    return most / len(files) if most > 1 else 0


def _candidates(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield what `folder` may be, that holds the files `names`."""
    yield from _cases(folder, [Path(CASES)])
    if any(name.parts[0].startswith("sub-") for name in names if len(name.parts) > 1):
        yield _block(folder, "bids", "folders sub-..., as in BIDS")
    yield from _table(folder, sorted(Path(path.name) for path in folder.iterdir() if path.suffix.lower() in TABLES))
    yield from _divided(folder, names)
    yield from _scans(folder, names)
    yield from _tokens(folder, names)
    yield from _same_names(folder, names)
    yield from _subfolders(folder, names)
    yield from _halves(folder, names)


def _block(folder: Path, kind: str, why: str, **settings: Any) -> Guess:
    return Guess({"kind": kind, "root": str(folder.resolve())} | settings, why)


def _cases(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    for name in names:
        if (folder / name).is_file():
            yield _block(folder, "msd", f"{name}, a list of cases", dataset=str(name))


def _table(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    for name in names:
        try:
            columns, _ = read_table(folder / name)
        except MandorlaError:
            continue
        if sum(map(holds_places, columns.values())) < 2:
            continue
        lower = {column.lower(): column for column in columns}
        subject = next((lower[column] for column in SUBJECTS if column in lower), next(iter(columns)))
        yield _block(folder, "table", f"{name}, a table with columns of files", table=str(name), subject=subject)


def _columns(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield vectors where columns of a table are numbers and fall into groups by how their names begin: `gene_1`."""
    for name in names:
        columns, _ = read_table(folder / name)
        lower = {column.lower(): column for column in columns}
        subject = next((lower[column] for column in SUBJECTS if column in lower), None)
        families: dict[str, list[str]] = {}
        for column, cells in columns.items():
            begin = re.match(r"[^\W\d_]+", column)
            is_text = any(isinstance(value, str) for value in to_values(cells))
            if begin and not is_text and column not in (subject, SPLIT):
                families.setdefault(begin[0], []).append(column)
        families = {begin: of for begin, of in families.items() if len(of) > 1}
        if not 2 <= len(families) <= MOST_MODALITIES:
            continue
        images = {
            begin: f"{begin}*" if fnmatch.filter(columns, f"{begin}*") == of else ",".join(of)
            for begin, of in families.items()
        }
        rest = [column for column in columns if column not in {subject, SPLIT}.union(*families.values())]
        settings: dict[str, Any] = {
            "images": _named({begin: f"{name}:{of}" for begin, of in images.items()}),
            "labels": {to_label_name(column): f"{name}:{column}" for column in rest},
        }
        settings |= {"groups": f"{name}:{subject}"} if subject else {}
        settings |= {"split": f"{name}:{SPLIT}"} if SPLIT in columns else {}
        yield _block(folder, "arrays", f"{name}, a table of numbers by sample", **settings)


def _scans(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield scans where names end in the usual names of modalities, after that of the case."""
    cases: dict[str, list[str]] = {}
    for name in names:
        words = [*re.finditer(r"[^-_. ]+", stem(name))]
        for word in words[-2:]:
            if modality := to_modality(stem(name)[word.start() :]):
                case = stem(name)[: word.start()].strip("-_. ") or name.parent.as_posix()
                cases.setdefault(modality, []).append(case)
                break
    known = [modality for modality in cases if not is_mask(modality)]
    if len(known) < 2 or sum(map(len, cases.values())) < KNOWN * len(names):
        return
    key = _key(cases, "", "")
    usual = key == ".+" or any(re.search(r"-\d{5}-\d{3}$", case) for of in cases.values() for case in of)
    why = f"names that end in {', '.join(in_order(cases))}"
    yield _block(folder, "scans", why, **({} if usual else {"key": key}))


def _tokens(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield globs where the end of every file's name says its modality: `p07_t1_mpr_sag.nii`, or `p07_rgb.png`."""
    for tell in (_from_modality, _last_word):
        ends = [tell(stem(name)) for name in names]
        counts = Counter(ends)
        words = [word for word in counts if not is_mask(to_modality(word) or "")]
        if not _are_words(words) or len(names) < 2 * len(counts) or set(map(stem, names)) & set(ends):
            continue
        of = {word: [name for name, end in zip(names, ends, strict=True) if end == word] for word in words}
        globs = {
            word: f"**/*{stem(own[0])[-len(word) - 1]}{word}{suffix(own[0])}"
            for word, own in of.items()
            if len(set(map(suffix, own))) == 1
        }
        stems = {w: [str(name.with_name(stem(name)))[: -len(w) - 1] for name in own] for w, own in of.items()}
        why = f"file names that end in {', '.join(words)}"
        yield _block(folder, "folders", why, folders=_named(globs), key=_key(stems, "", ""))


def _from_modality(text: str) -> str:
    """Return the end of a name from the first word on that is a modality's; the last word where none is."""
    starts = [match.start() for match in re.finditer(_TOKEN, text) if to_modality(match[0])]
    return text[starts[0] :] if starts else _last_word(text)


def _last_word(text: str) -> str:
    return _words(text)[-1]


def _same_names(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield globs where every sample has a folder with a file for each modality: `p07/t1.nii.gz`."""
    counts = Counter(name.name for name in names)
    parents = {name.parent for name in names}
    words = [name for name in counts if not is_mask(to_modality(stem(Path(name))) or "")]
    if not _are_words([stem(Path(name)) for name in words]) or len(parents) <= len(words) or min(counts.values()) < 2:
        return
    if all(to_modality(parent.name) for parent in parents):
        return
    folders = _named({stem(Path(name)): f"**/{name}" for name in words})
    stems = {name: [str(path.parent) for path in names if path.name == name] for name in words}
    why = f"a folder per sample with {', '.join(words)}"
    yield _block(folder, "folders", why, folders=folders, key=_key(stems, "", ""))


def _subfolders(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield the sub-folders, one for each modality, and what of the names in them pairs."""
    inside: dict[str, list[str]] = {}
    for name in names:
        if len(name.parts) > 1:
            inside.setdefault(name.parts[0], []).append(str(Path(*name.parts[1:-1], stem(name))))
    if all(to_part(name) in PARTS for name in inside):
        return
    images = {top: stems for top, stems in inside.items() if not is_mask(to_modality(top) or "")}
    images = images if len(images) > 1 else inside
    if not 2 <= len(images) <= MOST_MODALITIES:
        return
    ways = {("", ""): None, ("", f"{_SEPARATOR}{_TOKEN}"): None, (f"{_TOKEN}{_SEPARATOR}", ""): None}
    before, after = max(ways, key=lambda way: _num_paired(images, *way))
    yield _block(
        folder,
        "folders",
        f"a folder per modality: {', '.join(images)}",
        folders=_named({top: top for top in images}),
        key=_key(images, before, after),
        masks=_named({top: top for top in inside if top not in images}),
    )


def _divided(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield globs where folders of a division have a folder for each modality: `train/t1/p07.png`."""
    inside: dict[str, list[str]] = {}
    for name in names:
        if len(name.parts) < 3 or to_part(name.parts[0]) not in PARTS:
            return
        inside.setdefault(name.parts[1], []).append(str(Path(*name.parts[2:-1], stem(name))))
    if len({name.parts[:2] for name in names}) < len({name.parts[0] for name in names}) * len(inside):
        return
    globs = {top: f"*/{top}/**/*" for top in inside}
    masks = {top: globs.pop(top) for top in inside if is_mask(to_modality(top) or "")}
    if not 2 <= len(globs) <= MOST_MODALITIES:
        return
    yield _block(
        folder,
        "folders",
        f"folders of a division, with a folder per modality: {', '.join(globs)}",
        folders=_named(globs),
        key=_key({top: inside[top] for top in globs}, "", "").replace("^", "^[^/]+/", 1),
        masks=_named(masks),
    )


def _halves(folder: Path, names: Sequence[Path]) -> Iterator[Guess]:
    """Yield side-by-side images where the first that can be read is twice as wide as it is high."""
    if not all(suffix(name) in IMAGES for name in names):
        return
    for name in names:
        try:
            _, height, width = decode_image(folder / name).shape
        except MandorlaError:  # will be told by who reads them all
            continue
        if width == 2 * height:
            yield _block(folder, "side_by_side", "images twice as wide as high: two side by side")
        return


def _num_paired(stems: dict[str, list[str]], before: str, after: str) -> int:
    """Return how many names are in two folders if `before` and `after` are cut off, less those cut to one."""
    cut = [[_core(name, before, after) for name in of] for of in stems.values()]
    counts = Counter(core for of in cut for core in set(of) if core)
    return sum(count > 1 for count in counts.values()) - sum(len(of) - len(set(of)) for of in cut)


def _core(name: str, before: str, after: str) -> str:
    match = re.fullmatch(f"{before}(.+?){after}", name) if after else re.fullmatch(f"{before}(.+)", name)
    return match[1] if match else ""


def _key(stems: dict[str, list[str]], before: str, after: str) -> str:
    """Return a pattern for the names `stems` between `before` and `after`, with the words that name a subject.

    Those are the fewest that begin enough different groups of files; without such, no subject is told.
    """
    cores = sorted({core for of in stems.values() for name in of if (core := _core(name, before, after))})
    words = [re.split(_SEPARATOR, core) for core in cores]
    sizes = {num: len({tuple(of[:num]) for of in words}) for num in range(1, min(map(len, words), default=1))}
    fit = {num: size for num, size in sizes.items() if 2 < size < len(cores) and not _are_numbered(words, num)}
    if not fit:
        return f"^{before}(?P<subject>.+{'?' if after else ''}){after}$" if before or after else ".+"
    num = next((num for num, size in fit.items() if size >= ENOUGH_SUBJECTS), max(fit, key=fit.__getitem__))
    subject = _SEPARATOR.join([_TOKEN] * num)
    return f"^{before}(?P<subject>{subject}){_SEPARATOR}(?P<slice>.+{'?' if after else ''}){after}$"


def _are_numbered(words: Sequence[Sequence[str]], num: int) -> bool:
    """Return whether the first `num` words only stand before the number of a subject, as in PAT-0003 and `pat 4`."""
    numbered = {tuple(of[: num + 1]) for of in words if not re.search(r"\d", "".join(of[:num]))}
    numbers = [int(of[num]) for of in numbered if of[num].isdecimal()]
    return len(set(numbers)) == len(numbered) > 0


def _named(places: dict[str, str]) -> dict[str, str]:
    """Return places by names that modalities may have, the usual ones as far as they have one each, in their order."""
    names = {word: _usual_name(word) or re.sub(r"[^\w-]+", "-", word).strip("-") or word for word in places}
    counts = Counter(name.casefold() for name in names.values())
    named = {name if counts[name.casefold()] == 1 else word: word for word, name in names.items()}
    return {name: places[named[name]] for name in in_order(named)}


def _usual_name(text: str) -> str | None:
    """Return the modality or mask that `text` is called by, or the one modality that its words tell."""
    told = {name for name in map(to_modality, _words(text)) if name}
    return to_modality(text) or (min(told) if len(told) == 1 and not is_mask(min(told)) else None)


def _are_words(texts: Sequence[str]) -> bool:
    """Return whether each of `texts` may say a modality: letters, or words of which one is known.

    They are not if some differ in a number alone that is no modality's, as those of slices do.
    """
    bare = {tuple(word if to_modality(word) else re.sub(r"\d+", "", word) for word in _words(text)) for text in texts}
    known = all(text.isalpha() or any(map(to_modality, [text, *_words(text)])) for text in texts)
    return known and 2 <= len(bare) == len(texts) <= MOST_MODALITIES


def _words(text: str) -> list[str]:
    return re.split(r"[_ -]", text)
