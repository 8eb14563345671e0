"""Division into train, val and test: by group, and repeatable.

Everything of one group (a patient) goes to one part; neighbouring slices of a head are near copies, and a model that
trained on one has seen the other. Which group goes where follows from the seed and the groups' names, not from the
order of files. `stratify` gives each class its share of every part (by largest remainders, Hamilton's method). A
division that the data bring along is taken as it is, if no group lies in two parts.
"""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b

import numpy as np

from mandorla.errors import MandorlaError, MandorlaWarning

PARTS = ("train", "val", "test")


def split(
    groups: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
    source: str,
    strata: Sequence[str] | np.ndarray | None = None,
    excluded: Sequence[str] = (),
    parts: Sequence[str | None] | None = None,
    ids: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Return the rows of each part, "train", "val" and "test", so that no group lies in two.

    `groups` names the group of each row; the shares are of groups, and each part gets one at least. The order of rows
    plays no role. `strata` gives the class of each row (that of a group is its commonest): each class then has its
    share of every part, up to one group. Groups that are `excluded` are in no part; where the others are does not
    change. Where `parts` names the part of each row, of which `ids` are the names, only a part that no row is in is
    drawn, from the groups in train. `source` names the data in errors.

    Raises `MandorlaError` for too few groups, mistakes in `excluded`, a row without a part or with an unknown one, and
    a group that lies in two parts, which it names.
    """
    groups = list(map(str, groups))
    home = dict.fromkeys(groups, "train") if parts is None else _as_given(parts, ids, groups, source)
    _warn_of_like_names(groups, source)
    train = _shuffled([group for group in groups if home[group] == "train"], seed)
    num_train = len(train)
    stratum = dict.fromkeys(train, "") if strata is None else _commonest(groups, strata)
    shares = {"test": test_share, "val": val_share}
    drawn = [part for part in shares if part not in home.values()]
    for part in drawn:
        taken, train = _draw(train, max(1, round(shares[part] * num_train)), stratum)
        home |= dict.fromkeys(taken, part)
    if not train:
        given = "" if parts is None else " with the split train"
        remedy = ", or lower data.val_share and data.test_share" if num_train > len(drawn) else ", each part needs one"
        raise MandorlaError(
            f"{source}: {num_train} group(s){given} are too few to divide into train, val and test: add some{remedy}"
        )
    return _rows(groups, home, excluded, source)


def _as_given(parts: Sequence[str | None], ids: Sequence[str], groups: Sequence[str], source: str) -> dict[str, str]:
    """Return the part of each group. Raises `MandorlaError` for what is none, and a group that lies in two."""
    for name, part in zip(ids, parts, strict=True):
        if part not in PARTS:
            raise MandorlaError(
                f"{source}: sample {name!r} has the split {part!r}; give train, val or test to every one"
            )
    home: dict[str, str] = {}
    leaks = {}
    for group, part in zip(groups, parts, strict=True):
        if home.setdefault(group, part) != part:
            leaks.setdefault(group, part)
    if leaks:
        group, part = next(iter(leaks.items()))
        raise MandorlaError(
            f"{source}: the split leaks: subject {group!r} lies in both {home[group]} and {part} ({len(leaks)} such "
            "subject(s)); move each into one part"
        )
    return home


def _warn_of_like_names(groups: Sequence[str], source: str) -> None:
    """Warn of names that differ by case or leading zeros alone, as those of one subject in two files may."""
    alike: dict[str, list[str]] = {}
    for name in sorted(set(groups)):
        alike.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold()), []).append(name)
    if found := [names for names in alike.values() if len(names) > 1]:
        warnings.warn(
            f"{source}: subjects {' and '.join(map(repr, found[0]))} ({len(found)} such case(s)) are told apart by "
            "case or leading zeros alone; if they are one, give them one name, lest the split leak",
            MandorlaWarning,
            stacklevel=3,
        )


def _shuffled(groups: Sequence[str] | np.ndarray, seed: int) -> list[str]:
    """Return the different groups, in an order that their names and the seed decide."""
    return sorted(set(map(str, groups)), key=lambda name: blake2b(f"{seed}/{name}".encode()).digest())


def _rows(
    groups: Sequence[str], home: Mapping[str, str], excluded: Sequence[str], source: str
) -> dict[str, np.ndarray]:
    """Return the rows of each part, of which `home` is that of each group, without those of `excluded` groups.

    Raises `MandorlaError` for a name that no group has, and where nothing is left of a part that had something.
    """
    names = sorted(home)
    if unknown := sorted(set(excluded) - set(names)):
        near = get_close_matches(unknown[0], names)
        hint = f"; is it {' or '.join(map(repr, near))}?" if near else f"; they have names like {names[0]!r}"
        raise MandorlaError(f"data.exclude: no subject of {source} is called {unknown[0]!r}{hint}")
    if excluded and (empty := set(home.values()) - {home[name] for name in set(names) - set(excluded)}):
        raise MandorlaError(f"data.exclude leaves nothing of {source} for {min(empty)}: exclude fewer subjects")
    part_of = np.array(["" if group in excluded else home[group] for group in groups])
    return {part: np.flatnonzero(part_of == part) for part in PARTS}


def _commonest(groups: Sequence[str], strata: Sequence[str] | np.ndarray) -> dict[str, str]:
    """Return the commonest class of each group, of equally common ones the first in the alphabet."""
    counts: dict[str, Counter] = {}
    for group, stratum in zip(groups, map(str, strata), strict=True):
        counts.setdefault(group, Counter())[stratum] += 1
    return {group: min(count, key=lambda name: (-count[name], name)) for group, count in counts.items()}


def _draw(names: Sequence[str], num: int, stratum: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Take the first of `names`, `num` in all, from each stratum its share; return those and the rest, in order."""
    sizes = Counter(stratum[name] for name in names)
    shares = {s: size * num / len(names) for s, size in sizes.items()}
    quota = {s: int(share) for s, share in shares.items()}
    order = sorted(sizes, key=lambda s: (quota[s] - shares[s], s))
    for s in order[: num - sum(quota.values())]:
        quota[s] += 1
    taken, rest = [], []
    for name in names:
        quota[stratum[name]] -= 1
        (taken if quota[stratum[name]] >= 0 else rest).append(name)
    return taken, rest
