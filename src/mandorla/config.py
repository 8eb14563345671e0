"""Typed settings: frozen, strict, printable.

Every class that can be configured has a settings class beside it that derives from `Settings`; its attribute
docstrings are the meaning that `mandorla config` prints. Values come from defaults < YAML file < `key.sub=value` on
the command line:

    load_settings(cls, *, path: Path | None = None, overrides: Sequence[str] = ()) -> cls

A union of settings classes is told apart by its field `kind: Literal[...]` (a *tagged* union, declared with
`Field(discriminator="kind")`). The rules of merging:

- a block (a settings class) is merged key by key; every other value, also a list or a mapping, is replaced whole
- a block that does not name its `kind` keeps the one it has; a block that names another one starts again from the
  defaults of the new kind, so keys that belonged to the old kind are dropped
- a file may name another one that it starts from, `base: ../other.yaml`, relative to itself; so is every other path
  in it that its class marks with `Relative`, while a path on the command line is meant from the current folder
- on the command line `kind` is set before the other keys, and the value is YAML: `size=[3, 4]`, `name="007"`
- YAML is read by the version 1.2 core schema: `1e-4` is a number, `no` is a word, a repeated key is an error
"""

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from mandorla.errors import MandorlaError


class Settings(BaseModel):
    """Refuse unknown keys and wrong types; never change once made."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True)
class Relative:
    """Mark a setting that holds paths: those that end with `suffix`."""

    suffix: str = ""

    def resolve(self, value: Any, folder: Path | None) -> Any:
        """Return `value`, texts in lists or mappings, with `folder` before every relative path; None: as it is."""
        if isinstance(value, dict):
            return {key: self.resolve(item, folder) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, folder) for item in value]
        if not isinstance(value, str) or not value or not value.endswith(self.suffix):
            return value
        path = Path(value).expanduser()
        path = path if folder is None else folder / path
        return str(path.resolve() if folder is not None and ".." in path.parts else path)


AnySettings = TypeVar("AnySettings", bound=Settings)
Keys = tuple[str | int, ...]
COMMAND_LINE = "on the command line"
CONFIG = "config.yaml"  # of a run folder


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
    tree, origins = _defaults(cls), {(): str(path or "defaults")}
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
        raise MandorlaError(_explain(cls, mistakes[0], origins)) from error


def checked(settings: AnySettings, cls: type[AnySettings], name: str) -> AnySettings:
    """Return `settings` of class `cls`, which are called `name`, as they are.

    Raises MandorlaError for keys and values that `model_copy` has put there and that no file may hold.
    """
    if not isinstance(settings, cls):
        raise MandorlaError(f"{name} is a {cls.__name__}, not a {type(settings).__name__}")
    try:
        return cls.model_validate(vars(settings))
    except ValidationError as error:
        raise MandorlaError(_explain(cls, error.errors()[0], {(): name})) from error


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """Return the mapping in the YAML file at `path`, and the line (from 1) of each value by its path of keys.

    Keys are strings. Raises `MandorlaError` where the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MandorlaError(f"{path}: no such file; mend the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MandorlaError(f"{path}: cannot be read as UTF-8 text ({error}); save it as that") from error
    lines: dict[Keys, int] = {}
    tree = _parse_yaml(text, str(path), lines)
    if tree is None:
        return {}, lines
    if not isinstance(tree, dict):
        raise MandorlaError(f"{path}: expected `key: value` lines at the top, got {_show(tree)}")
    return tree, lines


def _layers(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any], dict[Keys, int]]]:
    """Yield the file at `path` after the files that its `base` leads to: name, values, lines."""
    if path in above:
        raise MandorlaError(f"{path}: is its own base, by way of {', '.join(map(str, above))}; remove one")
    layer, lines = read_yaml(path)
    base = layer.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise MandorlaError(f"{path}:{lines[('base',)]}: expected base: the path of a YAML file, got {_show(base)}")
        yield from _layers((path.parent / base).resolve(), (*above, path))
    yield path, layer, lines


def dump(settings: Settings) -> str:
    """Return `settings` as YAML text; `load_settings` of that text gives equal settings."""
    return _yaml_text(_plain(settings))


def dump_brief(settings: Settings) -> str:
    """Return what of `settings` differs from the defaults, as YAML text; `load_settings` of it gives equal settings."""
    return _yaml_text(_differences(settings, None))


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
            tree[name] = _plain(value)
    kind = getattr(settings, "kind", None)
    return {"kind": kind} | tree if kind and usual is None else tree


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
        return list(_rows(type(settings), _plain(settings), all_kinds=False))
    return list(_rows(settings, _defaults(settings), all_kinds=True))


def differences(a: Settings, b: Settings) -> dict[str, tuple[str | None, str | None]]:
    """Return the values, as YAML, of every key in which two settings differ; None where one has no such key."""
    old, new = ({row.key: row.default for row in describe(each) if row.type != "block"} for each in (a, b))
    return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


# ---------------------------------------------------------------------------------------------------------- merging


def _overlay(annotation: Any, base: Any, layer: Any, folder: Path | None) -> Any:
    """Return `base` changed by `layer`, whose paths start at `folder`: blocks key by key, other values whole."""
    if not isinstance(layer, dict):
        return layer
    base = base if isinstance(base, dict) else {}
    kind = layer.get("kind", base.get("kind"))
    block = _block(annotation, kind)
    if block is None:
        return layer
    if not base or kind != base.get("kind"):
        base = _defaults(block)
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


def _defaults(cls: type[Settings]) -> dict[str, Any]:
    """Return the defaults of `cls` as plain values; a required key is absent."""
    tree = {}
    for name, field in cls.model_fields.items():
        if not field.is_required():
            tree[name] = _plain(field.get_default(call_default_factory=True))
        elif block := _block(field.annotation, None):
            tree[name] = _defaults(block)
        elif name == "kind" and len(get_args(field.annotation)) == 1:
            tree[name] = get_args(field.annotation)[0]
    return tree


def _parse_override(text: str) -> tuple[Keys, Any]:
    key, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise MandorlaError(f"{COMMAND_LINE}: expected key.sub=value, got {text!r}")
    return keys, _parse_yaml(value, f"{COMMAND_LINE}: `{key}`", {})


def _kinds_first(parsed: list[tuple[Keys, Any]]) -> list[tuple[Keys, Any]]:
    """Return overrides in their order, but `kind` before the first other key of its block."""

    def place(index: int) -> float:
        block = parsed[index][0][:-1]
        inside = [i for i, (keys, _) in enumerate(parsed) if len(keys) > len(block) and keys[: len(block)] == block]
        return min(inside) - 0.5 if parsed[index][0][-1] == "kind" else index

    return [parsed[index] for index in sorted(range(len(parsed)), key=place)]


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, inf_nan_mode="constants")


# ---------------------------------------------------------------------------------------------- looking into classes


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, without `None`; any other annotation is its own only member."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in _members(member))
    return () if annotation is type(None) else (annotation,)


def _blocks(annotation: Any) -> dict[str | None, type[Settings]]:
    """Return the settings classes in `annotation` by kind; `None` stands for a class that names no fixed kind."""
    blocks: dict[str | None, type[Settings]] = {}
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, Settings):
            kinds = get_args(member.model_fields["kind"].annotation) if "kind" in member.model_fields else ()
            blocks |= dict.fromkeys(kinds or (None,), member)
    return blocks


def _kind_names(annotation: Any) -> list[str]:
    return [kind or "<name>" for kind in _blocks(annotation)]


def _block(annotation: Any, kind: Any) -> type[Settings] | None:
    """Return the settings class for that `kind`, or the only one there is, or `None`."""
    blocks = _blocks(annotation)
    if len(blocks) == 1:
        return next(iter(blocks.values()))
    return blocks.get(kind, blocks.get(None)) if isinstance(kind, str) else None


def _items(annotation: Any) -> Any:
    """Return what a list or mapping of that annotation holds, `None` for anything else."""
    members = _members(annotation)
    if len(members) != 1 or not (arguments := get_args(members[0])):
        return None
    origin = get_origin(members[0])
    if not isinstance(origin, type) or not issubclass(origin, (tuple, list, set, frozenset, Mapping, Sequence)):
        return None
    return arguments[1] if issubclass(origin, Mapping) else arguments[0]


def type_text(annotation: Any) -> str:
    """Return a type in words: `int`, `list of float`, `auto | cpu | cuda`, `block (kind: phantom | arrays)`."""
    members = _members(annotation)
    blocks = _blocks(annotation)
    optional = " | null" if type(None) in get_args(annotation) else ""
    if len(blocks) > 1:
        return f"block (kind: {' | '.join(_kind_names(annotation))}){optional}"
    if len(members) > 1 or optional:
        return " | ".join(map(type_text, members)) + optional
    (member,) = members or (type(None),)
    if blocks:
        return "block"
    arguments, item = get_args(member), _items(member)
    if get_origin(member) is Literal:
        return " | ".join(map(str, arguments))
    if get_origin(member) is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(type_text, arguments))}]"
    if item is not None:
        return f"{'mapping to' if issubclass(get_origin(member), Mapping) else 'list of'} {type_text(item)}"
    names = {Any: "anything", type(None): "null", Path: "path", Ellipsis: "..."}
    return names.get(member, getattr(member, "__name__", str(member)))


_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}


def _rows(
    cls: type[Settings], tree: dict[str, Any], all_kinds: bool, prefix: str = "", when: str = ""
) -> Iterator[Row]:
    for name, field in cls.model_fields.items():
        if name == "kind":
            continue
        key, value, meaning = prefix + name, tree.get(name), " ".join((field.description or "").split())
        default = _yaml_text(value, inline=True) if name in tree else "required"
        if _blocks(field.annotation):
            yield from _block_rows(field.annotation, value, default, meaning, all_kinds, key, when)
            continue
        text, null, _ = type_text(field.annotation).partition(" | null")
        bounds = [f"{_BOUNDS[b]} {v}" for limit in field.metadata for b, v in _limits(limit) if b in _BOUNDS]
        yield Row(key, f"{text} {', '.join(bounds)}".rstrip() + null, default, meaning, when)
        if _blocks(item := _items(field.annotation)):
            entries = {"<name>": None} if all_kinds else value if isinstance(value, dict) else {}
            for entry, inner in entries.items():
                yield from _block_rows(item, inner, "", "", all_kinds, f"{key}.{entry}", when)


def _block_rows(
    annotation: Any, value: Any, default: str, meaning: str, all_kinds: bool, key: str, when: str
) -> Iterator[Row]:
    """Yield a row for a block, or for the kind of a tagged union, then the rows in it."""
    blocks = _blocks(annotation)
    kind = value.get("kind") if isinstance(value, dict) else None
    if len(blocks) > 1:
        yield Row(f"{key}.kind", " | ".join(_kind_names(annotation)), kind or default, meaning, when)
    else:
        (block,) = blocks.values()
        default = "" if isinstance(value, dict) else default
        yield Row(key, "block", default, meaning or " ".join((block.__doc__ or "").split()), when)
    chosen = _block(annotation, kind) if isinstance(value, dict) else None
    for name, block in zip(_kind_names(annotation), blocks.values(), strict=True):
        if all_kinds or block is chosen:
            inner = value if block is chosen else _defaults(block)
            only_if = f"{key}.kind={name}" if all_kinds and len(blocks) > 1 else when
            yield from _rows(block, inner, all_kinds, f"{key}.", only_if)


def _limits(limit: Any) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(limit, name)) for name in getattr(limit, "__slots__", ()))


# ----------------------------------------------------------------------------------------------------------- mistakes


def _explain(cls: type[Settings], mistake: Any, origins: dict[Keys, str]) -> str:
    """Return one line about a mistake that pydantic found: place, key, what was expected, what to do."""
    keys, annotation, parent = _locate(cls, mistake["loc"])
    kind, given = mistake["type"], _show(mistake["input"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        keys, kinds = (*keys, "kind"), _kind_names(annotation)
        got = mistake["input"].get("kind") if isinstance(mistake["input"], dict) else None
        what = f"`{_dotted(keys)}`: expected {' | '.join(kinds)}, got {_show(got)}" + _nearest(str(got), kinds)
    elif kind == "extra_forbidden":
        what = f"unknown key `{_dotted(keys)}`" + _nearest_key(cls, keys, parent)
    elif kind == "missing":
        what = f"`{_dotted(keys)}` is missing: expected {type_text(annotation)}"
    elif kind in ("value_error", "assertion_error"):
        what = f"`{_dotted(keys)}`: {mistake['ctx']['error']}" if keys else str(mistake["ctx"]["error"])
    elif kind.endswith(("_type", "_parsing", "_attributes_type")) or kind in (
        "literal_error",
        "int_from_float",
        "enum",
    ):
        what = f"`{_dotted(keys)}`: expected {type_text(annotation)}, got {given}"
        if kind == "literal_error":
            what += _nearest(str(mistake["input"]), list(map(str, get_args(_members(annotation)[0]))))
        elif kind == "string_type" and isinstance(mistake["input"], (int, float)):
            what += f'; write "{mistake["input"]}" in quotes'
    else:
        what = f"`{_dotted(keys)}`: {mistake['msg'].replace('Input should', 'should')}, got {given}"
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
        blocks, members = _blocks(annotation), _members(annotation)
        if len(blocks) > 1:
            annotation = blocks.get(part, blocks.get(None))
        elif blocks and len(members) == 1:
            keys.append(part)
            (parent,) = blocks.values()
            annotation = parent.model_fields[part].annotation if part in parent.model_fields else None
        elif (item := _items(annotation)) is not None and part != "[key]":
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
    prefix = _dotted(keys[:-1]) + "." if keys[:-1] else ""
    here, rows = list(parent.model_fields), describe(cls)
    if kinds := [row.when for row in rows if row.key == _dotted(keys) and row.when]:
        return f"; it belongs to {' or '.join(kinds)}: set that too"
    elsewhere = {row.key.rpartition(".")[2]: row.key for row in reversed(rows)}
    near = difflib.get_close_matches(str(keys[-1]), elsewhere, n=1, cutoff=0.8)
    return _nearest(str(keys[-1]), here, prefix) or (
        f"; did you mean `{elsewhere[near[0]]}`?" if near else f"; valid here: {', '.join(here)}"
    )


def _dotted(keys: Keys) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _show(value: Any) -> str:
    text = _yaml_text(value, inline=True)
    return text if len(text) <= 60 else text[:57] + "..."


# --------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = {  # of the YAML 1.2 core schema: tag -> (first characters, pattern, value)
    "null": ("~nN", r"~|null|Null|NULL|", lambda text: None),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": ("-+0123456789", r"[-+]?[0-9]+", int),
    "float": (
        "-+.0123456789",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    ),
    "str": ("", r"(?!)", str),  # what no other pattern matches
}
_TAG = "tag:yaml.org,2002:"
_MOST_VALUES = 10_000  # in one file
for _name, (_first, _pattern, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), [*_first, ""])
_Dumper.add_representer(  # only between double quotes does PyYAML escape these line breaks
    str,
    lambda dumper, text: dumper.represent_scalar(
        _TAG + "str", text, style='"' if {"\x85", "\u2028", "\u2029"} & set(text) else None
    ),
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        _TAG + "seq", value, flow_style=not any(isinstance(item, (dict, list)) for item in value)
    ),
)


def _yaml_text(value: Any, inline: bool = False) -> str:
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf") if inline else 110,
        default_flow_style=inline,
    )
    return text.removesuffix("\n").removesuffix("\n...") if inline else text


def _parse_yaml(text: str, place: str, lines: dict[Keys, int]) -> Any:
    """Return the value of a YAML text; write the line of each value into `lines`, by its path of keys."""

    def build(node: yaml.Node, keys: Keys) -> Any:
        if len(lines) > _MOST_VALUES:
            raise MandorlaError(
                f"{place}: more than {_MOST_VALUES} values; does an alias repeat others again and again?"
            )
        if isinstance(node, yaml.SequenceNode):
            lines.update({(*keys, index): item.start_mark.line + 1 for index, item in enumerate(node.value)})
            return [build(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            tree: dict[str, Any] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise MandorlaError(f"{place}:{line}: a key is one word, not a list or a mapping")
                where = (*keys, key.value)
                if where[-1] in tree:
                    raise MandorlaError(f"{place}:{line}: `{_dotted(where)}` is given twice; remove one")
                lines[where] = line
                tree[where[-1]] = build(value, where)
            return tree
        tag = node.tag.removeprefix(_TAG)
        if tag not in _SCALARS:
            raise MandorlaError(
                f"{place}:{node.start_mark.line + 1}: the YAML tag {node.tag} is not allowed here; remove it"
            )
        return _SCALARS[tag][2](node.value)

    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else build(node, ())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise MandorlaError(f"{place}{line}: not valid YAML: {error.problem}; mend it") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MandorlaError(f"{place}: not valid YAML: {' '.join(str(error).split())}; mend it") from error
