"""One figure with everything needed to judge it: chance, ceiling, control, sample size and standard error."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter
from torch import Tensor

from mandorla.errors import MandorlaError
from mandorla.storage import read_json

FILE = "metrics.json"
_LARGEST = 2**25  # bytes of it
_ROUNDING = 1e-12
PARTS = 10  # of a jackknife, at most

Better = Literal["higher", "lower", "nearer ceiling", "neither"]


@dataclass(frozen=True)
class Record:
    """Hold one measured figure.

    - `name`: path-like and unique, e.g. `shared/class/view0`; the part before the first slash is its group
    - `value`, `error`: the figure and its standard error, None where too few were measured to know it; `n`: on how many
      samples it was measured or, of samples of which several are one patient's, patients: what is of one patient is not
      independent. `sd`: the standard deviation between samples (subjects, where they have names), for figures that are
      means over them
    - `chance`: what knowing nothing gives; `ceiling`: what is attainable on this data with this judge;
      `control`: the same figure where it is known to carry no information (the definition says which)
    - `p`: p-value of the test that the definition names
    - `definition`: one sentence; `better`: the direction of improvement, the ceiling where it may be passed, or neither
      for what tells of the data; `unit`: empty for shares and distances
    """

    name: str
    value: float
    error: float | None
    n: int
    definition: str
    better: Better = "higher"
    chance: float | None = None
    ceiling: float | None = None
    control: float | None = None
    unit: str = ""
    seed: int = 0
    sd: float | None = None
    p: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        scores: np.ndarray,
        definition: str,
        better: Better = "higher",
        *,
        chance: float | None = None,
        ceiling: float | None = None,
        control: float | None = None,
        unit: str = "",
        seed: int = 0,
        sd: float | None = None,
        p: float | None = None,
        groups: np.ndarray | None = None,
    ) -> "Record":
        """Return the mean of `scores` `(N,)` with its standard error; n counts the `groups` `(N,)`, where there are."""
        value, error = float(np.mean(scores)), standard_error(scores, groups)
        n = len(scores if groups is None else np.unique(groups))
        given = {"chance": chance, "ceiling": ceiling, "control": control, "unit": unit, "seed": seed, "sd": sd, "p": p}
        return cls(name, value, error, n, definition, better, **given)

    @property
    def group(self) -> str:
        """Return the part of the name before the first slash."""
        return self.name.split("/")[0]

    @property
    def merit(self) -> float:
        """Return how good the figure is: the larger the better, of one name; 0 where neither is, or nobody can tell."""
        if self.better == "nearer ceiling":
            return 0.0 if self.ceiling is None else -abs(self.value - self.ceiling)
        return {"higher": self.value, "lower": -self.value, "neither": 0.0}[self.better]

    @property
    def measured(self) -> str:
        """Return the figure and its standard error, where that is known, for people."""
        return " ± ".join(filter(None, (self.text("value"), self.text("error"))))

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain Python values."""
        return asdict(self)

    def text(self, key: str) -> str:
        """Format the number stored under `key` for people, with its unit; empty where there is none."""
        number = getattr(self, key)
        if number is None:
            return ""
        if key == "p" or self.unit != "dB":
            text = f"{number:.1e}" if _ROUNDING < abs(number) < 0.001 else f"{number:.3f}"
        else:
            text = f"{number:.1f}"
        return f"{text} {self.unit}".rstrip() if key in ("value", "chance", "ceiling", "control") else text


def read_records(run: Path) -> list[Record]:
    """Return the figures in the `metrics.json` of a run, none if it was not evaluated.

    Raises MandorlaError where the file is damaged, or larger than an evaluation writes.
    """
    path = run / FILE
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST // 2**20} MiB")
        return _RECORDS.validate_python(read_json(path, "records")["records"])
    except ValueError as error:
        raise MandorlaError(f"{path} holds no figures: run `mandorla evaluate {run}` again") from error


_RECORDS = TypeAdapter(list[Record])


def averaged(name: str, records: Sequence[Record], definition: str) -> Record:
    """Return the mean of like figures, of their errors and references, n the least of theirs; no p.

    The mean of errors is the error of figures that err together, as those of one sample's modalities may; else it is
    too large. The rest is that of the first.
    """
    numbers = {key: [getattr(record, key) for record in records] for key in _AVERAGED}
    means = {key: None if None in each else float(np.mean(each)) for key, each in numbers.items()}
    return replace(records[0], name=name, definition=definition, p=None, n=min(r.n for r in records), **means)


_AVERAGED = ("value", "error", "chance", "ceiling", "control")


def standard_error(scores: np.ndarray, groups: np.ndarray | None = None) -> float | None:
    """Return the standard error of the mean of `scores` `(N,)`, None of a single one or a single group.

    `groups` `(N,)` says whose (which patient's) each is: with G groups and r the sum over one of score - mean, it is
    sqrt(G / (G - 1) * sum r^2) / N, which is the usual one where each is a group of its own.

    Reference: Liang and Zeger, "Longitudinal Data Analysis Using Generalized Linear Models", 1986,
    https://doi.org/10.1093/biomet/73.1.13 (the robust variance, with the mean as the only coefficient)
    """
    names, index = np.unique(np.arange(len(scores)) if groups is None else groups, return_inverse=True)
    sums, num = np.bincount(index, scores - np.mean(scores)), len(names)
    return float(np.sqrt(np.square(sums).sum() * num / (num - 1)) / len(scores)) if num > 1 else None


def deviation(scores: np.ndarray) -> float | None:
    """Return the standard deviation between the `scores` `(N,)` of samples, N - 1 its degrees of freedom, if any."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def bootstrap_error(
    statistic: Callable[..., float],
    arrays: tuple[np.ndarray, ...],
    seed: int = 0,
    draws: int = 200,
    groups: np.ndarray | None = None,
) -> float | None:
    """Return the standard deviation of `statistic(*arrays)` over resamples of the rows that all `arrays` share.

    Where `groups` `(N,)` says whose (which patient's) each row is, whole groups are drawn. Resamples of which it is
    NaN, such as an AUC of one class alone, are passed over. None of a single row or group, and where all are NaN.

    Reference: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, https://doi.org/10.1214/aos/1176344552
    """
    rng, num = np.random.default_rng(seed), len(arrays[0])
    index = np.arange(num) if groups is None else np.unique(groups, return_inverse=True)[1]
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])  # rows of each group
    found = []
    for drawn in rng.integers(len(members), size=(draws, len(members))):
        rows = np.concatenate([members[k] for k in drawn])
        found.append(statistic(*(array[rows] for array in arrays)))
    found = np.array(found)
    defined = found[~np.isnan(found)]
    return float(np.std(defined)) if len(defined) and len(members) > 1 else None


def jackknife_error(
    statistic: Callable[..., np.ndarray],
    arrays: tuple[np.ndarray | Tensor, ...],
    groups: tuple[np.ndarray, ...],
    least: int = 1,
    seed: int = 0,
) -> np.ndarray | None:
    """Return the standard errors of the figures `statistic(*arrays)` `(F,)`, a part of the rows left out in turn.

    `groups` says for each of the independent `arrays` `(N, ...)` whose (which patient's) its rows are: whole ones are
    dealt out to `PARTS` parts at most, of all arrays to as many, and what is left out is a part of each. With P parts
    it is sqrt((P - 1) / P * sum (figure without the part - their mean)^2). No row occurs twice as in a bootstrap, where
    a sample would be its own nearest neighbour. None where some array has a single group, or fewer than `least` rows
    are left.

    Reference: Wolter, "Introduction to Variance Estimation", 2007, https://doi.org/10.1007/978-0-387-35099-8
    (chapter 4, the jackknife with random groups)
    """
    rng = np.random.default_rng(seed)
    index = [np.unique(names, return_inverse=True)[1] for names in groups]
    parts = min(PARTS, *(each.max() + 1 for each in index))
    part_of = [rng.permutation(each.max() + 1)[each] % parts for each in index]
    kept = [[np.flatnonzero(part != left_out) for part in part_of] for left_out in range(parts)]
    if parts < 2 or min(len(rows) for of_arrays in kept for rows in of_arrays) < least:
        return None
    found = [statistic(*(z[rows] for z, rows in zip(arrays, of_arrays, strict=True))) for of_arrays in kept]
    return np.sqrt((parts - 1) * np.var(found, axis=0))
