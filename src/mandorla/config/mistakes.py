"""What is wrong with settings, in one line: the place, the dotted key, what was expected, what to do."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from mandorla.config.rows import describe
from mandorla.config.settings import Settings, blocks_of, items_of, kind_names, members_of, type_text
from mandorla.config.yaml import Keys, dotted, show

COMMAND_LINE = "on the command line"


def explain(cls: type[Settings], mistake: Any, origins: dict[Keys, str]) -> str:
    """Return one line about a mistake that pydantic found: place, key, what was expected, what to do."""
    keys, annotation, parent = _locate(cls, mistake["loc"])
    kind, given = mistake["type"], show(mistake["input"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        keys, kinds = (*keys, "kind"), kind_names(annotation)
        got = mistake["input"].get("kind") if isinstance(mistake["input"], dict) else None
        what = f"`{dotted(keys)}`: expected {' | '.join(kinds)}, got {show(got)}" + _nearest(str(got), kinds)
    elif kind == "extra_forbidden":
        what = f"unknown key `{dotted(keys)}`" + _nearest_key(cls, keys, parent)
    elif kind == "missing":
        what = f"`{dotted(keys)}` is missing: expected {type_text(annotation)}"
    elif kind in ("value_error", "assertion_error"):
        what = f"`{dotted(keys)}`: {mistake['ctx']['error']}" if keys else str(mistake["ctx"]["error"])
    elif kind.endswith(("_type", "_parsing", "_attributes_type")) or kind in (
        "literal_error",
        "int_from_float",
        "enum",
    ):
        what = f"`{dotted(keys)}`: expected {type_text(annotation)}, got {given}"
        if kind == "literal_error":
            what += _nearest(str(mistake["input"]), list(map(str, get_args(members_of(annotation)[0]))))
        elif kind == "string_type" and isinstance(mistake["input"], (int, float)):
            what += f'; write "{mistake["input"]}" in quotes'
    else:
        what = f"`{dotted(keys)}`: {mistake['msg'].replace('Input should', 'should')}, got {given}"
    if any(place == COMMAND_LINE and other[: len(keys)] == keys for other, place in origins.items()):
        return f"{COMMAND_LINE}: {what}"
    place = next(origins[keys[:length]] for length in range(len(keys), -1, -1) if keys[:length] in origins)
    return f"{place}: {what}"


def _locate(cls: type[Settings], loc: Keys) -> tuple[Keys, Any, type[Settings]]:
    """Return what pydantic's `loc` points to: the path of keys, its annotation, the block that it lies in.

    Pydantic puts the tag of a union into `loc`, and the name of the member tried for a union without tags.
    """
    keys: list[str | int] = []
    annotation: Any = cls
    parent = cls
    for part in loc:
        blocks, members = blocks_of(annotation), members_of(annotation)
        if len(blocks) > 1:
            annotation = blocks.get(part, blocks.get(None))
        elif blocks and len(members) == 1:
            keys.append(part)
            (parent,) = blocks.values()
            annotation = parent.model_fields[part].annotation if part in parent.model_fields else None
        elif (item := items_of(annotation)) is not None and part != "[key]":
            keys.append(part)
            arguments = get_args(members[0])
            fixed = get_origin(members[0]) is tuple and Ellipsis not in arguments and part < len(arguments)
            annotation = arguments[part] if fixed else item
        else:
            break
    return tuple(keys), annotation, parent


def _nearest(word: str, words: Sequence[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean `{prefix}{near[0]}`?" if near else ""


def _nearest_key(cls: type[Settings], keys: Keys, parent: type[Settings]) -> str:
    """Return the nearest key of the block, else the key of another block whose last part is nearest."""
    prefix = dotted(keys[:-1]) + "." if keys[:-1] else ""
    here, rows = list(parent.model_fields), describe(cls)
    if kinds := [row.when for row in rows if row.key == dotted(keys) and row.when]:
        return f"; it belongs to {' or '.join(kinds)}: set that too"
    elsewhere = {row.key.rpartition(".")[2]: row.key for row in reversed(rows)}
    near = difflib.get_close_matches(str(keys[-1]), elsewhere, n=1, cutoff=0.8)
    return _nearest(str(keys[-1]), here, prefix) or (
        f"; did you mean `{elsewhere[near[0]]}`?" if near else f"; valid here: {', '.join(here)}"
    )
