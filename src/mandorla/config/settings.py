"""The class that all settings derive from, and what the annotations of its fields hold."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python


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


def defaults_of(cls: type[Settings]) -> dict[str, Any]:
    """Return the defaults of `cls` as plain values; a required key is absent."""
    tree = {}
    for name, field in cls.model_fields.items():
        if not field.is_required():
            tree[name] = plain(field.get_default(call_default_factory=True))
        elif block := block_of(field.annotation, None):
            tree[name] = defaults_of(block)
        elif name == "kind" and len(get_args(field.annotation)) == 1:
            tree[name] = get_args(field.annotation)[0]
    return tree


def plain(value: Any) -> Any:
    """Return a value as JSON has it: what a file holds."""
    return to_jsonable_python(value, inf_nan_mode="constants")


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, without `None`; any other annotation is its own only member."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in members_of(member))
    return () if annotation is type(None) else (annotation,)


def blocks_of(annotation: Any) -> dict[str | None, type[Settings]]:
    """Return the settings classes in `annotation` by kind; `None` stands for a class that names no fixed kind."""
    blocks: dict[str | None, type[Settings]] = {}
    for member in members_of(annotation):
        if isinstance(member, type) and issubclass(member, Settings):
            kinds = get_args(member.model_fields["kind"].annotation) if "kind" in member.model_fields else ()
            blocks |= dict.fromkeys(kinds or (None,), member)
    return blocks


def kind_names(annotation: Any) -> list[str]:
    """Return the kinds in `annotation`, `<name>` for a class that names no fixed kind."""
    return [kind or "<name>" for kind in blocks_of(annotation)]


def block_of(annotation: Any, kind: Any) -> type[Settings] | None:
    """Return the settings class for that `kind`, or the only one there is, or `None`."""
    blocks = blocks_of(annotation)
    if len(blocks) == 1:
        return next(iter(blocks.values()))
    return blocks.get(kind, blocks.get(None)) if isinstance(kind, str) else None


def items_of(annotation: Any) -> Any:
    """Return what a list or mapping of that annotation holds, `None` for anything else."""
    members = members_of(annotation)
    if len(members) != 1 or not (arguments := get_args(members[0])):
        return None
    origin = get_origin(members[0])
    if not isinstance(origin, type) or not issubclass(origin, (tuple, list, set, frozenset, Mapping, Sequence)):
        return None
    return arguments[1] if issubclass(origin, Mapping) else arguments[0]


def type_text(annotation: Any) -> str:
    """Return a type in words: `int`, `list of float`, `auto | cpu | cuda`, `block (kind: phantom | arrays)`."""
    members = members_of(annotation)
    blocks = blocks_of(annotation)
    optional = " | null" if type(None) in get_args(annotation) else ""
    if len(blocks) > 1:
        return f"block (kind: {' | '.join(kind_names(annotation))}){optional}"
    if len(members) > 1 or optional:
        return " | ".join(map(type_text, members)) + optional
    (member,) = members or (type(None),)
    if blocks:
        return "block"
    arguments, item = get_args(member), items_of(member)
    if get_origin(member) is Literal:
        return " | ".join(map(str, arguments))
    if get_origin(member) is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(type_text, arguments))}]"
    if item is not None:
        return f"{'mapping to' if issubclass(get_origin(member), Mapping) else 'list of'} {type_text(item)}"
    names = {Any: "anything", type(None): "null", Path: "path", Ellipsis: "..."}
    return names.get(member, getattr(member, "__name__", str(member)))
