"""Every key of settings as a row: what `mandorla config` prints, and by what two settings are compared."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mandorla.config.settings import Settings, block_of, blocks_of, defaults_of, items_of, kind_names, plain, type_text
from mandorla.config.yaml import yaml_text


class Row(NamedTuple):
    """Describe one key: dotted `key`, `type`, `default` as YAML, `meaning`.

    `when` is `key.kind=name` for a key that only one kind of a tagged union has, else empty. A key of type `block`
    holds the keys that follow it.
    """

    key: str
    type: str
    default: str
    meaning: str
    when: str = ""


def describe(settings: type[Settings] | Settings) -> list[Row]:
    """Return one row per key: of a class with its defaults and every kind, of an instance with its values and kinds."""
    if isinstance(settings, Settings):
        return list(_rows(type(settings), plain(settings), all_kinds=False))
    return list(_rows(settings, defaults_of(settings), all_kinds=True))


def differences(a: Settings, b: Settings) -> dict[str, tuple[str | None, str | None]]:
    """Return the values, as YAML, of every key in which two settings differ; None where one has no such key."""
    old, new = ({row.key: row.default for row in describe(each) if row.type != "block"} for each in (a, b))
    return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}


def _rows(
    cls: type[Settings], tree: dict[str, Any], all_kinds: bool, prefix: str = "", when: str = ""
) -> Iterator[Row]:
    for name, field in cls.model_fields.items():
        if name == "kind":
            continue
        key, value, meaning = prefix + name, tree.get(name), " ".join((field.description or "").split())
        default = yaml_text(value, inline=True) if name in tree else "required"
        if blocks_of(field.annotation):
            yield from _block_rows(field.annotation, value, default, meaning, all_kinds, key, when)
            continue
        text, null, _ = type_text(field.annotation).partition(" | null")
        bounds = [f"{_BOUNDS[b]} {v}" for limit in field.metadata for b, v in _limits(limit) if b in _BOUNDS]
        yield Row(key, f"{text} {', '.join(bounds)}".rstrip() + null, default, meaning, when)
        if blocks_of(item := items_of(field.annotation)):
            entries = {"<name>": None} if all_kinds else value if isinstance(value, dict) else {}
            for entry, inner in entries.items():
                yield from _block_rows(item, inner, "", "", all_kinds, f"{key}.{entry}", when)


def _block_rows(
    annotation: Any, value: Any, default: str, meaning: str, all_kinds: bool, key: str, when: str
) -> Iterator[Row]:
    """Yield a row for a block, or for the kind of a tagged union, then the rows in it."""
    blocks = blocks_of(annotation)
    kind = value.get("kind") if isinstance(value, dict) else None
    if len(blocks) > 1:
        yield Row(f"{key}.kind", " | ".join(kind_names(annotation)), kind or default, meaning, when)
    else:
        (block,) = blocks.values()
        default = "" if isinstance(value, dict) else default
        yield Row(key, "block", default, meaning or " ".join((block.__doc__ or "").split()), when)
    chosen = block_of(annotation, kind) if isinstance(value, dict) else None
    for name, block in zip(kind_names(annotation), blocks.values(), strict=True):
        if all_kinds or block is chosen:
            inner = value if block is chosen else defaults_of(block)
            only_if = f"{key}.kind={name}" if all_kinds and len(blocks) > 1 else when
            yield from _rows(block, inner, all_kinds, f"{key}.", only_if)


def _limits(limit: Any) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(limit, name)) for name in getattr(limit, "__slots__", ()))
