"""What is wrong with data, and the settings that they ask for.

`judge` compares facts with settings and says what stops a training (`mend`) and what is worth a look (`note`);
`advise` gives the settings that the facts ask for.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mandorla.check.facts import Double, Facts, ModalityFacts
from mandorla.data import DataConfig
from mandorla.data.intensity import AsStored, Percentile, is_range
from mandorla.data.samples import FilesConfig
from mandorla.data.stored import StoredConfig

FEW_SUBJECTS, FEW_SAMPLES = 10, 50
GAP = 0.1  # of the range of brightness, between a background of one value and the darkest tissue
MOST_BACKGROUND = 0.9  # share of values, of which percentiles of all still tell what is bright
UNLIKE = 3.0  # ratio of bright values between subjects from which they have no common scale
DIM = 0.5  # share of a type's range below which its values are dim
STRETCH = 1.1  # how much the proportions of images may differ that are brought to one size
HOUNSFIELD = (-1000.0, 1000.0)
LARGEST = {2: 128, 3: 64}  # by number of axes: values per axis that train in a fair time


class Problem(NamedTuple):
    """Say what is wrong: `mend` stops a training or spoils it, `note` is worth a look; `where` are examples."""

    level: Literal["mend", "note"]
    what: str
    where: list[str]
    remedy: str


class Change(NamedTuple):
    """Propose a setting: dotted `key`, plain `value`, and why."""

    key: str
    value: Any
    why: str


def judge(facts: Facts, config: DataConfig) -> list[Problem]:
    """Return all that is wrong with the data if they are read as `config` says, what stops a training first."""
    problems = [
        *_judge_pairing(facts, config),
        *_judge_volumes(facts, config),
        *_judge_parts(facts, config),
        *(problem for modality in facts.modalities for problem in _judge_modality(modality, facts, config)),
        *_judge_labels(facts),
        *_judge_names(facts, config),
    ]
    return sorted(problems, key=lambda problem: problem.level != "mend")


def _judge_pairing(facts: Facts, config: DataConfig) -> Iterator[Problem]:
    if facts.partly:
        lacking = ", ".join(f"{name} {len(ids):,}" for name, ids in facts.partly.items())
        stop = getattr(config, "unpaired", "keep") == "error"
        remedy = "add the files, mend data.key, or set data.unpaired to keep" if stop else "kept, as missing"
        where = [f"{text} lacks {name}" for name, ids in facts.partly.items() for text in ids]
        yield Problem("mend" if stop else "note", f"samples that lack a modality: {lacking}", where, remedy)
    if not facts.together:
        remedy = "say what pairs files, such as by data.key, so that those of one sample have one key"
        yield Problem("mend", "no training sample has two modalities", [], remedy)
    elif facts.apart:
        what = f"pairs of modalities that no training sample has both of: {len(facts.apart)}"
        yield Problem("note", what, [*map(" and ".join, facts.apart)], "what they share is learnt through others")
    if facts.skipped:
        stop = getattr(config, "unpairable", "skip") == "error"
        remedy = "mend or move them, or set data.unpairable to skip" if stop else "left out"
        where = [f"{place}: {why}" for place, why in facts.skipped]
        yield Problem("mend" if stop else "note", f"files that belong to no sample: {len(where):,}", where, remedy)
    if facts.copied:
        where = [f"{text}: {one} and {other}" for text, one, other in facts.copied]
        remedy = "does a copy stand in for a missing modality? then leave it out: a missing one may be missing"
        yield Problem("note", f"samples with the same image as two modalities: {len(where):,}", where, remedy)


def _judge_volumes(facts: Facts, config: DataConfig) -> Iterator[Problem]:
    if facts.grids:
        where = [f"{text}: {how}" for text, how in facts.grids]
        stop = not (isinstance(config, FilesConfig) and config.geometry.resample)
        remedy = "resampled to the first; that is right where they are registered"
        if stop:
            remedy = "register them; where they are, and only grids differ, set data.geometry.resample to to_first"
        what = f"volumes on another grid than their partner: {len(where):,}"
        yield Problem("mend" if stop else "note", what, where, remedy)
    if len(facts.spacings) > 1:
        where = [f"{_count(count, 'sample')} with {text} mm" for text, count in facts.spacings.most_common()]
        what = f"different spacings: {len(facts.spacings)}"
        yield Problem("note", what, where, "a voxel then has not the same size everywhere")
    if len(facts.axes) > 1 and isinstance(config, FilesConfig) and config.geometry.axes is None:
        where = [f"{_count(count, 'sample')} with {text}" for text, count in facts.axes.most_common()]
        yield Problem("mend", f"different axes: {len(facts.axes)}", where, "set data.geometry.axes, such as IPL")
    if facts.empty:
        what = f"volumes without a slice of enough foreground: {len(facts.empty):,}"
        yield Problem("note", what, facts.empty, "left out; data.slices.keep says how much is enough")


def _judge_parts(facts: Facts, config: DataConfig) -> Iterator[Problem]:
    if facts.division:
        yield Problem("mend", facts.division, [], "mend the division, or add subjects")
    if facts.doubles:
        stop = getattr(config, "duplicates", "keep") == "error"
        remedy = "remove one, or give both the same subject" + (", or set data.duplicates to keep" if stop else "")
        what = f"images that lie in two parts: {len(facts.doubles):,}"
        yield Problem("mend" if stop else "note", what, _pairs(facts.doubles), remedy)
    if facts.alike:
        remedy = "are they of one subject? then give them the same"
        what = f"images that look like one in another part: {len(facts.alike):,}"
        yield Problem("note", what, _pairs(facts.alike), remedy)
    if facts.repeated:
        what = f"images that are in one part twice: {len(facts.repeated):,}"
        yield Problem("note", what, _pairs(facts.repeated), "copies count twice in the training")
    if facts.composed:
        return
    if facts.num_samples < FEW_SAMPLES:
        remedy = "enough to try things, not for a model of use"
        yield Problem("note", f"few samples: {facts.num_samples}", [], remedy)
    if facts.num_subjects == facts.num_samples >= FEW_SAMPLES:
        remedy = "if several are of one patient, say so: neighbouring slices in two parts are copies"
        yield Problem("note", "every sample counts as a subject of its own", [], remedy)
    elif facts.num_subjects < FEW_SUBJECTS and not facts.division:
        remedy = "figures on so few test subjects will vary much from one to the next"
        yield Problem("note", f"few subjects: {facts.num_subjects}", [], remedy)


def _judge_modality(modality: ModalityFacts, facts: Facts, config: DataConfig) -> Iterator[Problem]:
    name = modality.name
    if modality.unreadable:
        where = [why if why.startswith(place) else f"{place}: {why}" for place, why in modality.unreadable]
        yield Problem("mend", f"{name}: files that cannot be read: {len(where):,}", where, "replace or remove them")
    if modality.bad:
        what = f"{name}: samples with NaN or infinite values: {len(modality.bad):,}"
        yield Problem("mend", what, modality.bad, "fill or remove them")
    size = config.size if isinstance(config, StoredConfig) else None
    small = [shape for shape in modality.shapes if size and not _shrinks(shape[1:], size)]
    if small:
        what = f"{name}: {show(small[0])} cannot be averaged down to data.size {list(size)}"
        yield Problem("mend", what, [], "lower data.size, or leave it out")
    if len(modality.shapes) > 1:
        where = [f"{_count(count, 'sample')} {show(shape)}" for shape, count in modality.shapes.most_common()]
        any_size = size and getattr(config, "sizes", "any") == "any"
        stop = not any_size or len({shape[0] for shape in modality.shapes}) > 1
        remedy = "averaged down"
        if stop:
            remedy = "make them alike, or set data.size to what all can be averaged down to, and data.sizes to any"
        yield Problem("mend" if stop else "note", f"{name}: {len(where)} different shapes", where, remedy)
    if len(modality.dtypes) > 1:
        where = [f"{_count(count, 'sample')} {dtype}" for dtype, count in modality.dtypes.most_common()]
        volumes = _are_volumes(modality, facts)
        remedy = "volumes are brought to one type" if volumes else "store all of a modality alike"
        yield Problem("note" if volumes else "mend", f"{name}: {len(where)} different number types", where, remedy)
    if modality.shapes and not is_range(modality.low, modality.high):
        remedy = "replace it, or leave this modality out"
        what = f"holds the single value {modality.low:g}"
        if modality.low < modality.high:
            what = f"its values, {modality.low:g} to {modality.high:g}, are too near or too far for float32"
        yield Problem("mend", f"{name}: {what}", [], remedy)
    elif modality.shapes and (why := misfit(modality, facts, config)):
        yield Problem("mend", f"{name}: {why}", [], "set data.intensity, as proposed below")
    if modality.blank:
        what = f"{name}: samples of a single value: {len(modality.blank):,}"
        remedy = "blank ones teach nothing: leave out those that stand for a missing image"
        yield Problem("note", what, modality.blank, remedy)
    if modality.dark:
        what = f"{name}: samples with next to nothing but background: {len(modality.dark):,}"
        yield Problem("note", what, modality.dark, "end slices? they teach little")
    if modality.unlike > UNLIKE and per_dataset(modality, config):
        what = f"{name}: bright subjects are {modality.unlike:.1f} times as bright as faint ones"
        remedy = "scanners without a common scale? then data.intensity {kind: percentile, per: subject}"
        yield Problem("note", what, [], remedy)
    if modality.lit:
        what = f"{name}: subjects without the dark background of the others: {len(modality.lit):,}"
        remedy = (
            "values with signs, or another kind of image? what is so rare is not learnt: data.exclude leaves it out"
        )
        yield Problem("note", what, modality.lit, remedy)


def _judge_labels(facts: Facts) -> Iterator[Problem]:
    for label in facts.labels:
        if label.error:
            yield Problem("mend", f"label {label.name}: {label.error}", [], "mend it, or leave the label out")
        elif label.kind == "class" and len(label.counts) == 1:
            what = f"label {label.name} is the same for all samples"
            yield Problem("note", what, [], "leave it out: nothing can be learnt of it")
        elif label.kind == "class" and not label.is_class:
            what = f"label {label.name}: {len(label.counts)} classes in {label.num:,} samples"
            yield Problem("note", what, [], f"meant as a number? then data.numbers: [{label.name}]")


def _judge_names(facts: Facts, config: DataConfig) -> Iterator[Problem]:
    names, labels = [modality.name for modality in facts.modalities], [label.name for label in facts.labels]
    known = {"intensity_of": names, "read_of": [*names, *labels], "numbers": labels}
    for key, fitting in known.items():
        for name in getattr(config, key, {}):
            if name not in fitting:
                remedy = f"the data have {', '.join(fitting)}"
                yield Problem("mend", f"data.{key} names {name!r}, which is not in the data", [], remedy)


def misfit(modality: ModalityFacts, facts: Facts, config: DataConfig) -> str:
    """Return why the values of `modality` do not fit the intensity that `config` sets; empty if they do."""
    dtype = _stored_type(modality, facts)
    if not isinstance(_intensity_of(modality, config), AsStored) or dtype in ("uint8", "uint16"):
        return ""
    if not dtype.startswith("float"):
        return f"what range values of type {dtype} have is not known"
    if modality.low < 0 or modality.high > 1:
        return f"values from {modality.low:.4g} to {modality.high:.4g} lie outside [0, 1]"
    return ""


def _stored_type(modality: ModalityFacts, facts: Facts) -> str:
    """Return the type that a training stores `modality` in; empty if nothing can be read, or types do not go together.

    Volumes are brought to one type that holds all, and to floats where they are resampled.
    """
    if not _are_volumes(modality, facts):
        return modality.dtype if len(modality.dtypes) == 1 else ""
    return "float32" if facts.grids else np.result_type(*modality.dtypes).name


def _are_volumes(modality: ModalityFacts, facts: Facts) -> bool:
    return len(modality.shape) == 4 or bool(facts.num_slices)


def per_dataset(modality: ModalityFacts, config: DataConfig) -> bool:
    """Return whether all subjects share one range under `config`, which a fixed window means to."""
    settings = _intensity_of(modality, config)
    return isinstance(settings, AsStored) or getattr(settings, "per", "") == "dataset"


def advise(facts: Facts, config: DataConfig, guessed: bool) -> list[Change]:
    """Return the settings of the data that the facts ask for; where `config` was `guessed`, also what is convenient."""
    if not isinstance(config, StoredConfig):
        return []
    changes = []
    if facts.partly and getattr(config, "unpaired", "keep") == "error":
        changes.append(Change("data.unpaired", "keep", "some samples lack a modality"))
    if facts.skipped and getattr(config, "unpairable", "skip") == "error":
        changes.append(Change("data.unpairable", "skip", "some files belong to no sample"))
    if facts.grids and isinstance(config, FilesConfig) and not config.geometry.resample:
        changes.append(Change("data.geometry.resample", "to_first", "some volumes do not lie on one grid"))
    changes += _advise_intensity(facts, config)
    unlike = any(len(modality.shapes) > 1 for modality in facts.modalities)
    if config.size is None and (guessed or unlike) and (size := _fair_size(facts)):
        why = "images are of different sizes" if unlike else "larger images need more memory and time"
        changes.append(Change("data.size", size, why))
    if unlike and getattr(config, "sizes", "any") == "equal" and (config.size or _fair_size(facts)):
        changes.append(Change("data.sizes", "any", "images are of different sizes"))
    return changes


def _advise_intensity(facts: Facts, config: StoredConfig) -> list[Change]:
    """Return settings of the intensity: one for most modalities, others for single ones."""
    now = {m.name: _intensity_of(m, config).model_dump(mode="json") for m in facts.modalities}
    asked = {
        m.name: _best_intensity(m, facts) for m in facts.modalities if isinstance(_intensity_of(m, config), AsStored)
    }
    asked = {name: advice for name, advice in asked.items() if advice}
    if not asked:
        return []
    wanted = [_brief(asked[name][0]) if name in asked else _brief(now[name]) for name in now]
    usual = max(wanted, key=wanted.count)
    others = {name: settings for name, settings in zip(now, wanted, strict=True) if settings != usual}
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in asked.items())
    changes = [Change("data.intensity", usual, why)]
    return changes + ([Change("data.intensity_of", others, "others differ")] if others or config.intensity_of else [])


def _best_intensity(modality: ModalityFacts, facts: Facts) -> tuple[dict[str, Any], str] | None:
    """Return the intensity that values as they are stored ask for, and why; None if they are fine so."""
    dtype = _stored_type(modality, facts)
    if not dtype or modality.low == modality.high:
        return None
    per = {"per": "subject"} if modality.unlike > UNLIKE else {}
    largest = {"uint8": 255, "uint16": 65535}.get(dtype, 1 if dtype.startswith("float") else 0)
    dims = len(modality.shape) - 1
    bright = modality.foreground.get(99.5, modality.high)
    if modality.low >= 0 and modality.high <= largest:
        if bright >= DIM * largest or dims < 2:
            return None
        why = f"bright values are at {bright:.4g} where the type goes to {largest}"
        return {"kind": "percentile", **_counted(modality), **per}, why
    if dims < 2:
        per = {"per": "channel"} if modality.shape[0] > 1 else {}  # each may have a unit of its own
        return {"kind": "minmax", **per}, f"values from {modality.low:.4g} to {modality.high:.4g}"
    if -1100 <= modality.percentiles[0.5] <= -900 and modality.background and modality.high > 200:
        low, high = HOUNSFIELD
        return {
            "kind": "window",
            "low": low,
            "high": high,
        }, "values look like Hounsfield units; narrow it to your tissue"
    why = f"{dtype} values from {modality.low:.4g} to {modality.high:.4g}"
    return {"kind": "percentile", **_counted(modality), **per}, why


def _counted(modality: ModalityFacts) -> dict[str, bool]:
    """Return settings by which background of one value becomes 0, and is that value on the way back.

    Such is that of heads without their skull: the darkest of them are far brighter, and were 0 if they alone counted.
    """
    dark, bright = (modality.foreground.get(each, modality.low) for each in (0.5, 99.5))
    one_value = modality.percentiles[0.5] == modality.low and 0 < modality.background < MOST_BACKGROUND
    return {"foreground": False} if one_value and dark - modality.low > GAP * (bright - modality.low) else {}


def _fair_size(facts: Facts) -> list[int] | None:
    """Return a size to average down to that all images can have; None if they are small and of one size already.

    It is None as well for images of different numbers of axes and channels, and where sides are not in proportion.
    """
    shapes = {shape for modality in facts.modalities for shape in modality.shapes}
    sizes = {shape[1:] for shape in shapes}
    if len({len(size) for size in sizes}) != 1 or len(next(iter(sizes))) not in LARGEST:
        return None
    least = [min(axis) for axis in zip(*sizes, strict=True)]
    most = LARGEST[len(least)]
    if max(least) <= most and len(sizes) == 1:
        return None
    if any(len({shape[0] for shape in modality.shapes}) > 1 for modality in facts.modalities):
        return None
    ratios = [[n / size[0] for n in size] for size in sizes]
    if any(max(axis) > STRETCH * min(axis) for axis in zip(*ratios, strict=True)):
        return None
    factor = max(1, -(-max(least) // most))
    return [max(1, n // factor) for n in least]


def _intensity_of(modality: ModalityFacts, config: DataConfig):
    if not isinstance(config, StoredConfig):
        return AsStored()
    return config.intensity_of.get(modality.name, config.intensity)


def _brief(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of an intensity without what percentiles have anyway."""
    usual = Percentile().model_dump(mode="json")
    return {k: v for k, v in settings.items() if k == "kind" or settings["kind"] != "percentile" or usual[k] != v}


def _shrinks(own: tuple[int, ...], wanted: Sequence[int]) -> bool:
    return len(own) == len(wanted) and all(a >= b for a, b in zip(own, wanted, strict=True))


def _pairs(doubles: Sequence[Double]) -> list[str]:
    return [f"{double.modality} of {double.ids[0]} and {double.ids[1]}" for double in doubles]


def show(shape: tuple[int, ...]) -> str:
    """Return a shape `(C, *size)` in words."""
    channels = f", {shape[0]} channels" if shape[0] > 1 else ""
    return f"{' x '.join(map(str, shape[1:]))}{channels}" if len(shape) > 1 else f"{shape[0]} numbers"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
