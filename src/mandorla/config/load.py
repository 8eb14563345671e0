"""Settings from files and from the command line, and back into text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mandorla.config.mistakes import COMMAND_LINE, explain
from mandorla.config.settings import AnySettings, Relative, Settings, block_of, defaults_of, plain
from mandorla.config.yaml import Keys, parse_yaml, read_yaml, show, yaml_text
from mandorla.errors import MandorlaError


def load_settings(
    cls: type[AnySettings],
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> AnySettings:
    """Return settings of class `cls`: its defaults, changed by the YAML file at `path`, changed by `overrides`.

    Each override is `key.sub=value`. Paths in the file are relative to `folder`, else to the file. Raises
    `MandorlaError` in one line that names the place (file and line, or the command line), the dotted key, what was
    expected and, for an unknown key, the nearest valid one.
    """
    tree, origins = defaults_of(cls), {(): str(path or "defaults")}
    for file, layer, lines in _layers(path) if path else ():
        tree = _overlay(cls, tree, layer, folder or file.parent)
        origins |= {keys: f"{file}:{line}" for keys, line in lines.items()}
    parsed = [_parse_override(text) for text in overrides]
    for keys, value in _kinds_first(parsed):
        tree = _overlay(cls, tree, _set(tree, keys, value), None)
        changed = keys[:-1] if keys[-1] == "kind" else keys
        origins = {other: place for other, place in origins.items() if other[: len(changed)] != changed or not other}
        origins[changed] = COMMAND_LINE
    try:
        return cls.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
        raise MandorlaError(explain(cls, mistakes[0], origins)) from error


def checked(settings: AnySettings, cls: type[AnySettings], name: str) -> AnySettings:
    """Return `settings` of class `cls`, which are called `name`, as they are.

    Raises MandorlaError for keys and values that `model_copy` has put there and that no file may hold.
    """
    if not isinstance(settings, cls):
        raise MandorlaError(f"{name} is a {cls.__name__}, not a {type(settings).__name__}")
    try:
        return cls.model_validate(vars(settings))
    except ValidationError as error:
        raise MandorlaError(explain(cls, error.errors()[0], {(): name})) from error


def dump(settings: Settings) -> str:
    """Return `settings` as YAML text; `load_settings` of that text gives equal settings."""
    return yaml_text(plain(settings))


def dump_brief(settings: Settings) -> str:
    """Return what of `settings` differs from the defaults, as YAML text; `load_settings` of it gives equal settings."""
    return yaml_text(_differences(settings, None))


def _differences(settings: Settings, usual: Settings | None) -> dict[str, Any]:
    """Return what of `settings` a file must say where `usual`, or the defaults of the class, stand without it."""
    tree = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.is_required() and usual is None:
            default = None
        else:
            default = getattr(usual, name) if usual else field.get_default(call_default_factory=True)
        if isinstance(value, Settings) and type(value) is type(default):
            if inner := _differences(value, default):
                tree[name] = inner
        elif isinstance(value, Settings):
            tree[name] = _differences(value, None)
        elif (field.is_required() and usual is None) or value != default:
            tree[name] = plain(value)
    kind = getattr(settings, "kind", None)
    return {"kind": kind} | tree if kind and usual is None else tree


def _layers(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any], dict[Keys, int]]]:
    """Yield the file at `path` after the files that its `base` leads to: name, values, lines."""
    if path in above:
        raise MandorlaError(f"{path}: is its own base, by way of {', '.join(map(str, above))}; remove one")
    layer, lines = read_yaml(path)
    base = layer.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise MandorlaError(f"{path}:{lines[('base',)]}: expected base: the path of a YAML file, got {show(base)}")
        yield from _layers((path.parent / base).resolve(), (*above, path))
    yield path, layer, lines


def _overlay(annotation: Any, base: Any, layer: Any, folder: Path | None) -> Any:
    """Return `base` changed by `layer`, whose paths start at `folder`: blocks key by key, other values whole."""
    if not isinstance(layer, dict):
        return layer
    base = base if isinstance(base, dict) else {}
    kind = layer.get("kind", base.get("kind"))
    block = block_of(annotation, kind)
    if block is None:
        return layer
    if not base or kind != base.get("kind"):
        base = defaults_of(block)
    fields = block.model_fields
    changes = {
        key: _overlay(fields[key].annotation, base.get(key), value, folder) if key in fields else value
        for key, value in layer.items()
    }
    for key in fields.keys() & changes.keys():
        for mark in fields[key].metadata:
            if isinstance(mark, Relative):
                changes[key] = mark.resolve(changes[key], folder)
    return base | changes


def _set(tree: Any, keys: Keys, value: Any) -> Any:
    """Return the layer that sets the value at `keys` and repeats what `tree` holds beside it."""
    if not keys:
        return value
    tree = tree if isinstance(tree, dict) else {}
    others = {} if keys == ("kind",) else tree
    return others | {keys[0]: _set(tree.get(keys[0]), keys[1:], value)}


def _parse_override(text: str) -> tuple[Keys, Any]:
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise MandorlaError(f"{COMMAND_LINE}: expected key.sub=value, got {text!r}")
    return keys, parse_yaml(value, f"{COMMAND_LINE}: `{key}`", {})


def _kinds_first(parsed: list[tuple[Keys, Any]]) -> list[tuple[Keys, Any]]:
    """Return overrides in their order, but `kind` before the first other key of its block."""

    def place(index: int) -> float:
        block = parsed[index][0][:-1]
        inside = [i for i, (keys, _) in enumerate(parsed) if len(keys) > len(block) and keys[: len(block)] == block]
        return min(inside) - 0.5 if parsed[index][0][-1] == "kind" else index

    return [parsed[index] for index in sorted(range(len(parsed)), key=place)]
